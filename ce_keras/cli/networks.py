"""Commands that build and rebuild networks: info, build, collegialize."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from pathlib import Path

from ce_keras import files
from ce_keras.checks import brief, checked_seed, positive_int
from ce_keras.cli.output import file_to_write, load_zoo, show, start_keras
from ce_keras.cli.theory import add_budget, budget_of, parse_alpha
from ce_keras.designs import DESIGN_MODES, choose_design
from ce_keras.geometry import RESNEXTS, Design


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that build and rewrite networks."""
    add = command(
        "info",
        _info,
        "parameters, FLOPs and weights of a network of the zoo",
        "ce-keras info resnext50_4x16d",
    ).add_argument
    add("name", metavar="NAME", help="like resnext50_4x16d, resnet50 or wide_resnet28_10")

    add = command(
        "build",
        _build,
        "build a network of the zoo in Keras",
        "ce-keras build resnext50 --mode dual --save model.keras",
    ).add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(RESNEXTS)}, or a name that info knows")
    add("--mode", choices=DESIGN_MODES, help="a ready design of the zoo")
    add("--cardinality", type=int, metavar="M", help="number of paths, instead of --mode")
    add("--width", type=int, metavar="N", help="channels of a path, instead of --mode")
    add("--classes", type=int, help="outputs of the classifier")
    add("--seed", type=int, help="for reproducible weights")
    add("--save", type=file_to_write, metavar="FILE.keras", help="where to save the model")

    add = command(
        "collegialize",
        _collegialize,
        "turn a Keras model into its optimal ensemble",
        "ce-keras collegialize model.keras --mode dual --save smaller.keras",
    ).add_argument
    add("model", metavar="MODEL.keras", help="a model that Keras saved")
    add("--mode", choices=("primal", "dual"), default="primal", help="the problem (%(default)s)")
    add(
        "--save",
        type=file_to_write,
        metavar="FILE.keras",
        help="where to; only a report if not given",
    )
    add("--alpha", type=_rewrite_alpha, help="a number, 'fit' or 'closed_form'")
    add_budget(add)
    add("--tolerance", type=float, default=0.02, help="what counts as equal (%(default)s)")
    add("--multiple-of", type=int, metavar="K", help="only widths that are multiples of this")
    add("--design", help="such as 12x10d, instead of the optimum")
    add("--only", nargs="+", metavar="PATTERN", help="only chains with such a layer: 'conv4_*'")
    add("--skip", nargs="+", metavar="PATTERN", help="no chain with such a layer")
    add(
        "--per",
        choices=("network", "stage"),
        default="network",
        help="one design for (%(default)s)",
    )
    add("--seed", type=int, help="for the new weights, and for a fit")
    add("--init", choices=("random", "split"), default="random", help="split keeps trained units")
    add("--measure", type=int, metavar="BATCH", help="time training steps of so many examples")


def _info(options: argparse.Namespace) -> None:
    zoo = load_zoo()
    from ce_keras.layers.flops import flops

    known = {entry.name: entry for entry in zoo.entries()}
    model = zoo.create(options.name)
    entry = known.get(options.name, known.get(model.name))
    content = {
        "name": model.name,
        "kind": entry.mode if entry else "any",
        "origin": entry.origin if entry else "asked for",
        "table": entry.table if entry else "",
        "input_shape": list(model.input_shape[1:]),
        "parameters": zoo.trained_parameters(model),
        "flops": flops(model),
        "weights": sorted(zoo.published_weights(model.name)),
    }
    source = f" in Table {content['table']}" if content["table"] else ""
    lines = [
        f"{content['name']}: {content['kind']} design, {content['origin']}{source}",
        f"{content['parameters']:,} parameters, {content['flops']:,} FLOPs for an image of "
        + "x".join(map(str, content["input_shape"])),
        f"trained weights: {', '.join(content['weights']) or 'none'}",
    ]
    show(options, content, "\n".join(lines))


def _build(options: argparse.Namespace) -> None:
    family, design = _family_and_design(options)
    if options.save and options.save.suffix != ".keras":
        raise ValueError(f"--save: got {str(options.save)!r}; it must end in .keras")
    checked_seed(options.seed)
    classes = {}
    if options.classes is not None:
        classes["classes"] = positive_int("classes", options.classes)
    zoo = load_zoo()
    own = {} if design is None else design._asdict()
    model = zoo.create(family, seed=options.seed, **own, **classes)
    if options.save:
        with files.replacing(options.save) as part:
            model.save(part)
    counts = {
        "name": model.name,
        "design": str(design or ""),
        "parameters": zoo.trained_parameters(model),
        "saved": str(options.save) if options.save else None,
    }
    saved = f", saved as {options.save}" if options.save else " (--save FILE.keras keeps it)"
    show(options, counts, f"{model.name}: {counts['parameters']:,} parameters{saved}")


def _collegialize(options: argparse.Namespace) -> None:
    if options.save and options.save.suffix != ".keras":
        raise ValueError(f"--save: got {str(options.save)!r}; it must end in .keras")
    if options.save:
        files.check_other("--save", options.save, Path(options.model))
    checked_seed(options.seed)
    start_keras()
    import keras

    from ce_keras import rewrite
    from ce_keras.saving import load_model

    model = load_model(options.model)
    arguments = {
        name: getattr(options, name)
        for name in ("alpha", "tolerance", "multiple_of", "design", "only", "skip", "per")
    } | budget_of(options)
    if options.save is None:
        report = rewrite.inspect(model, options.mode, seed=options.seed, **arguments)
    else:
        if options.seed is not None:
            keras.utils.set_random_seed(options.seed)
        ensemble = rewrite.collegialize(
            model,
            options.mode,
            seed=options.seed,
            init=options.init,
            measure=options.measure,
            **arguments,
        )
        report = ensemble.report
        with files.replacing(options.save) as part:
            ensemble.save(part)
    saved = f"\nsaved as {options.save}" if options.save else ""
    show(options, {**report.to_dict(), "saved": saved and str(options.save)}, f"{report!r}{saved}")


# First parts of names, beside those of the ResNeXts.
_OTHERS = ("resnet50", "resnet101", "resnet152", "wide", "fully")


def _family_and_design(options: argparse.Namespace) -> tuple[str, Design | None]:
    """Return the name for `zoo.create`, and the design if a ResNeXt's is given by options."""
    if options.name in RESNEXTS:
        asked = options.mode, options.cardinality, options.width
        return options.name, choose_design(options.name, *asked)
    if options.name.partition("_")[0] not in (*RESNEXTS, *_OTHERS):
        near = difflib.get_close_matches(options.name[:100], (*RESNEXTS, *_OTHERS), 1, cutoff=0)
        raise ValueError(f"NAME: got {brief(options.name)}; did you mean {near[0]!r}?")
    family, _, design = options.name.partition("_")
    if family in RESNEXTS:
        try:
            Design.parse(design)
        except ValueError as error:
            raise ValueError(f"NAME: {error}") from None
    for option in ("mode", "cardinality", "width"):
        if getattr(options, option) is not None:
            raise ValueError(
                f"--{option}: {options.name} is one network; {', '.join(RESNEXTS)} have designs"
            )
    return options.name, None


def _rewrite_alpha(text: str) -> float | str:
    return text if text == "fit" else parse_alpha(text)
