"""The command `ce-keras`: parses, calls the library, prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ce_keras import files
from ce_keras.checks import checked_seed, positive_int
from ce_keras.designs import MODES, PUBLISHED, choose_design
from ce_keras.geometry import BASELINES, RESNEXTS, Module, bottleneck, fully_connected, resnext
from ce_keras.optimum import search


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 2 an argument that does not fit."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"ce-keras {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


# Commands --------------------------------------------------------------------------------------


def _search(options: argparse.Namespace) -> None:
    baseline, widths = _described(options)
    solution = search(
        baseline,
        options.mode,
        alpha=options.alpha,
        budget=options.budget,
        hard_budget=options.hard_budget,
        tolerance=options.tolerance,
        multiple_of=options.multiple_of,
        widths=widths,
    )
    if options.plot:
        from ce_keras import plotting

        plotting.save_curves([solution], options.plot)
    _print(options, solution.to_dict(), repr(solution))


def _described(options: argparse.Namespace) -> tuple[str | Module, list[int] | None]:
    """The baseline and the widths to consider; `fc` is described by its sizes."""
    if options.baseline == "fc":
        return _fully_connected(options, options.outputs), None
    if options.inputs is not None:
        raise ValueError(f"--inputs: only fc takes it; {options.baseline} has its own")
    return options.baseline, options.widths


def _fit_alpha(options: argparse.Namespace) -> None:
    from ce_keras.ntk import fit_alpha

    fit = fit_alpha(
        _module(options),
        draws=options.draws,
        method=options.method,
        parameterization=options.parameterization,
        seed=options.seed,
        checkpoint=options.checkpoint,
    )
    if options.plot:
        from ce_keras import plotting

        plotting.save_curves([fit], options.plot)
    points = zip(
        fit.width.tolist(), fit.log_ratio.tolist(), fit.log_ratio_error.tolist(), strict=True
    )
    content = {
        **{name: getattr(fit, name) for name in ("module", "method", "draws", "alpha")},
        **{name: getattr(fit, name) for name in ("alpha_error", "intercept", "holds")},
        "points": [{"width": n, "log_ratio": y, "error": error} for n, y, error in points],
    }
    _print(options, content, repr(fit))


def _module(options: argparse.Namespace) -> Module:
    if options.module == "bottleneck":
        return bottleneck(256 if options.inputs is None else options.inputs, 256)
    return _fully_connected(options)


def _fully_connected(options: argparse.Namespace, outputs: int = 1) -> Module:
    if options.inputs is None or options.widths is None:
        raise ValueError("fc: needs its sizes, like --inputs 748 --widths 500x5")
    return fully_connected(options.inputs, options.widths, outputs, name="fc")


def _list(options: argparse.Namespace) -> None:
    count = _count_built() if options.built else _count_derived
    rows = []
    for row in PUBLISHED:
        parameters = count(row.network, *row.design)
        decimals = len(f"{row.millions}".partition(".")[2])
        rows.append(
            {
                "network": row.network,
                "mode": row.mode,
                "design": str(row.design),
                "table": row.table,
                "published_millions": row.millions,
                "parameters": parameters,
                # As near as the printed figure can be: one unit in its last place.
                "agrees": abs(parameters / 1e6 - row.millions) < 10**-decimals,
                "flops": int(resnext(row.network).flops(*row.design)),
            }
        )
    header = ["network", "mode", "design", "table", "published", "parameters", "FLOPs"]
    lines = [
        [
            row["network"],
            row["mode"],
            row["design"],
            row["table"],
            f"{row['published_millions']:g}M",
            f"{row['parameters']:,}" + ("" if row["agrees"] else " (differs)"),
            f"{row['flops']:,}",
        ]
        for row in rows
    ]
    _print(options, rows, _table([header, *lines], left=4))


def _count_derived(network: str, cardinality: int, width: int) -> int:
    return int(resnext(network).params(cardinality, width))


def _count_built() -> Callable[[str, int, int], int]:
    zoo = _load_zoo()
    return lambda network, cardinality, width: zoo.trained_parameters(
        zoo.NETWORKS[network](cardinality=cardinality, width=width)
    )


def _build(options: argparse.Namespace) -> None:
    if options.name not in RESNEXTS:
        raise ValueError(f"NAME: unknown {options.name!r}; known: {', '.join(RESNEXTS)}")
    design = choose_design(options.name, options.mode, options.cardinality, options.width)
    if options.save and options.save.suffix != ".keras":
        raise ValueError(f"--save: got {str(options.save)!r}; it must end in .keras")
    checked_seed(options.seed)
    classes = {}
    if options.classes is not None:
        classes["classes"] = positive_int("classes", options.classes)
    zoo = _load_zoo()
    model = zoo.NETWORKS[options.name](
        cardinality=design.cardinality, width=design.width, seed=options.seed, **classes
    )
    if options.save:
        with files.replacing(options.save) as part:
            model.save(part)
    counts = {
        "name": model.name,
        "design": str(design),
        "parameters": zoo.trained_parameters(model),
        "saved": str(options.save) if options.save else None,
    }
    saved = f", saved as {options.save}" if options.save else " (--save FILE.keras keeps it)"
    _print(options, counts, f"{model.name}: {counts['parameters']:,} parameters{saved}")


def _collegialize(options: argparse.Namespace) -> None:
    if options.save and options.save.suffix != ".keras":
        raise ValueError(f"--save: got {str(options.save)!r}; it must end in .keras")
    with _muted_stderr():
        import keras

        from ce_keras import rewrite
    model = keras.models.load_model(options.model)
    arguments = {
        name: getattr(options, name)
        for name in ("alpha", "budget", "tolerance", "multiple_of", "design", "only", "skip", "per")
    }
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
    _print(options, report.to_dict(), repr(report))


def _reproduce(options: argparse.Namespace) -> None:
    from ce_keras import reproduce

    names = reproduce.NAMES if options.name == "all" else (options.name,)
    told = []
    for name in names:
        result = reproduce.reproduce(name, options.scale, options.out, seed=options.seed)
        told.append({"name": name, "checks": [check._asdict() for check in result.checks]})
        if not options.json:
            print(f"{result.title}\n{result.paragraph}\n", flush=True)
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"Figures, pictures and pages are in {options.out}.")


def _demo(options: argparse.Namespace) -> None:
    from ce_keras import __version__, demo

    settings = {
        name: getattr(options, name)
        for name in ("epochs", "images", "batch_size", "source", "seed")
    }
    data = demo.load(**settings)  # What is wrong is said before anything else.
    solutions = demo.derive(options.out / "curve.png")
    if not options.json:
        print(_derivation(options, solutions.values()), flush=True)
    _load_zoo()
    rows = demo.compare(solutions, data, **settings)
    results = {
        "version": __version__,
        "network": demo.NETWORK,
        "settings": settings,
        "solutions": {mode: solution.to_dict() for mode, solution in solutions.items()},
        "trained": [row._asdict() for row in rows],
    }
    files.write_json(options.out / "results.json", results)
    _print(options, results, _comparison(options, rows))


def _info(options: argparse.Namespace) -> None:
    zoo = _load_zoo()
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
    _print(options, content, "\n".join(lines))


def _train(options: argparse.Namespace) -> None:
    from ce_keras.training.recipe import read_recipe

    changes = dict(_assignment(text) for text in options.set or ())
    if options.mode:
        changes["model.mode"] = options.mode
    recipe = read_recipe(options.recipe, changes)
    job = _load_job()
    devices = job.find_devices(options.devices)  # First: several machines insist.
    planned = job.plan(recipe)
    if options.dry_run:
        _print(options, planned, _plan_text(planned))
        return
    out = options.out or Path("runs") / f"{Path(options.recipe).stem}-{planned['model']}"
    if not options.json:
        print(f"{_plan_text(planned)}\nin {out}", flush=True)
    results = job.train(
        recipe,
        out,
        seed=options.seed,
        runs=options.runs,
        save_every=options.save_every,
        devices=devices,
    )
    expected, top5 = planned["expected_error"], planned["expected_top5_error"]
    source = f" ({recipe.expected.source})"
    paper = "" if expected is None else f"; the paper: {expected} %{source}"
    if top5 is not None and "top5_error" in results:
        paper += f"; top-5 {results['top5_error']:.2f} %, the paper: {top5} %"
    spread = results.get("standard_error")
    error = f"{results['error']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
    _print(options, results, f"test error {error} %{paper}")


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set: got {text!r}; write KEY=VALUE, like optimizer.rate=0.05")
    return key, value


def _plan_text(planned: dict[str, Any]) -> str:
    return (
        f"{planned['model']}: {planned['parameters']:,} parameters, "
        f"{planned['flops']:,} FLOPs an image\n"
        f"{planned['train_images']:,} training and {planned['test_images']:,} test images; "
        f"{planned['steps']:,} steps, {planned['steps_per_epoch']:,} an epoch\n"
        f"about {planned['memory'] / 2**20:,.0f} MiB for weights and activations"
    )


def _evaluate(options: argparse.Namespace) -> None:
    errors = _load_job().evaluate(options.run_folder)
    text = f"test error {errors['error']:.2f} %, top-5 {errors['top5_error']:.2f} %"
    _print(options, errors, text)


def _export(options: argparse.Namespace) -> None:
    path = _load_job().export(options.run_folder, options.format, options.to)
    _print(options, {"path": str(path)}, f"written to {path}")


def _load_job() -> Any:
    """What trains, once TensorFlow is there."""
    _load_zoo()
    from ce_keras.training import job

    return job


def _derivation(options: argparse.Namespace, solutions: Iterable[Any]) -> str:
    return "\n\n".join(
        [
            "Derived in milliseconds, without training a candidate:",
            *map(str, solutions),
            f"The curves are drawn in {options.out / 'curve.png'}.",
            "Training the baseline and both designs on Fashion-MNIST, "
            f"{options.epochs} epochs each:\n",
        ]
    )


def _comparison(options: argparse.Namespace, rows: Iterable[Any]) -> str:
    header = ["", "design", "parameters", "FLOPs", "ms/step", "test error"]
    lines = [
        [
            row.role,
            row.design,
            f"{row.parameters:,}",
            f"{row.flops:,}",
            f"{1e3 * row.seconds_per_step:.1f}",
            f"{row.test_error:.2f} ± {row.test_error_std:.2f} %",
        ]
        for row in rows
    ]
    return (
        f"\n{_table([header, *lines], left=2)}\n\n"
        "± is one standard error of the test set alone; another seed moves the errors as much.\n"
        f"All figures are in {options.out / 'results.json'}."
    )


def _print(options: argparse.Namespace, content: Any, text: str) -> None:
    print(json.dumps(content, indent=2) if options.json else text)


def _table(rows: list[list[str]], left: int) -> str:
    """Columns padded to their widest cell; the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _load_zoo() -> Any:
    """The zoo, without the page of messages TensorFlow writes while it loads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _muted_stderr():
        from ce_keras import zoo

        zoo.resnext11()  # Devices are found, and not found, at the first tensor.
    return zoo


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    """Hold back what is written to standard error, native code included; show it on failure."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# Arguments -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ce-keras",
        description="Derive the optimal collegial ensemble of a network, without training one.",
        epilog="Start with: ce-keras demo",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="print JSON, for scripts")
        added.set_defaults(run=run)
        return added

    _theory(command)
    _models(command)
    _runs(command)
    return parser


def _theory(command: Callable[..., argparse.ArgumentParser]) -> None:
    """What derives designs."""
    add = command(
        "search",
        _search,
        "the optimal cardinality and width of a baseline",
        "ce-keras search resnext29 --mode dual --plot curve.png",
    ).add_argument
    add(
        "baseline",
        help=f"one of {', '.join(BASELINES)}, with its width like resnext29-1x226d; or fc, a fully "
        "connected network of --inputs and --widths",
    )
    add("--mode", choices=("primal", "dual"), default="primal", help=_MODE_HELP)
    add("--alpha", type=_alpha, metavar="A", help=_ALPHA_HELP)
    add("--budget", choices=("params", "flops"), default="params", help="what counts as size")
    add("--hard-budget", action="store_true", help="never above it, not even by half a path")
    add("--tolerance", type=float, default=0.02, help=_TOLERANCE_HELP)
    add("--multiple-of", type=int, metavar="K", help="only widths that are multiples of K")
    add("--widths", type=_widths, metavar="N", help=_WIDTHS_HELP)
    add("--inputs", type=int, metavar="N", help="input size of fc")
    add("--outputs", type=int, default=1, metavar="N", help="output size of fc (%(default)s)")
    add("--plot", type=Path, metavar="FILE", help="draw the curve (.png, .svg or .pdf)")

    add = command(
        "fit-alpha",
        _fit_alpha,
        "fit the variance law's constant to a module (Algorithm 1)",
        "ce-keras fit-alpha bottleneck",
    ).add_argument
    add("module", choices=("bottleneck", "fc"), help="the paper's block, or fully connected layers")
    add("--inputs", type=int, metavar="N", help="input size of fc, or channels of the block (256)")
    add("--widths", type=_widths, metavar="N", help="hidden layers of fc, like 500x5")
    add("--draws", type=int, default=2000, help="networks for each width (%(default)s)")
    add(
        "--method",
        choices=("auto", "closed_form", "sampler", "ensemble", "tape"),
        default="auto",
        help="how kernels are drawn: ensemble and tape by Keras networks (%(default)s)",
    )
    add("--parameterization", choices=("ntk", "standard"), default="ntk", help="(%(default)s)")
    add("--seed", type=int, default=0, help="for reproducible draws (%(default)s)")
    add("--checkpoint", type=Path, metavar="FILE", help="keeps what is done, to go on from")
    add("--plot", type=Path, metavar="FILE", help="draw the fit (.png, .svg or .pdf)")

    add = command(
        "list",
        _list,
        "the paper's designs, with their parameters as published and as counted",
        "ce-keras list",
    ).add_argument
    add("--built", action="store_true", help="count in Keras models that are built for it")


def _models(command: Callable[..., argparse.ArgumentParser]) -> None:
    """What builds and rebuilds networks."""
    add = command(
        "info",
        _info,
        "what is known of a network of the zoo",
        "ce-keras info resnext50_4x16d",
    ).add_argument
    add("name", metavar="NAME", help="like resnext50_4x16d, resnet50 or wide_resnet28_10")

    add = command(
        "build",
        _build,
        "build a network of the zoo in Keras",
        "ce-keras build resnext50 --mode dual --save model.keras",
    ).add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(RESNEXTS)}")
    add("--mode", choices=MODES, help="a ready design of the zoo")
    add("--cardinality", type=int, metavar="M", help="number of paths, instead of --mode")
    add("--width", type=int, metavar="N", help="channels of a path, instead of --mode")
    add("--classes", type=int, help="outputs of the classifier")
    add("--seed", type=int, help="for reproducible weights")
    add("--save", type=Path, metavar="FILE.keras", help="where to save the model")

    add = command(
        "collegialize",
        _collegialize,
        "turn a Keras model into its optimal ensemble",
        "ce-keras collegialize model.keras --mode dual --save smaller.keras",
    ).add_argument
    add("model", metavar="MODEL.keras", help="a model that Keras saved")
    add("--mode", choices=("primal", "dual"), default="primal", help="the problem (%(default)s)")
    add("--save", type=Path, metavar="FILE.keras", help="where to; only a report if not given")
    add("--alpha", type=_rewrite_alpha, help="a number, 'fit' or 'closed_form'")
    add("--budget", choices=("params", "flops"), default="params", help="(%(default)s)")
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


def _runs(command: Callable[..., argparse.ArgumentParser]) -> None:
    """What trains, and what reproduces the paper."""
    from ce_keras.reproduce import NAMES

    add = command(
        "train",
        _train,
        "train a network by a recipe, and go on where a run was stopped",
        "ce-keras train fashion_mnist --mode dual --out run",
    ).add_argument
    add("recipe", help="a TOML file, or the name of one that comes with the package")
    add("--mode", choices=MODES, help="the design, instead of the recipe's")
    add("--set", action="append", metavar="KEY=VALUE", help="like optimizer.rate=0.05; repeatable")
    add("--out", type=Path, help="folder of the run (runs/RECIPE-MODEL)")
    add("--seed", type=int, default=0, help="for weights, order and augmentation (%(default)s)")
    add("--runs", type=int, default=1, help="repeated runs, each with a seed (%(default)s)")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints within an epoch")
    add("--devices", nargs="+", default=(), metavar="NAME", help="like gpu:0 gpu:1 (all GPUs)")
    add("--dry-run", action="store_true", help="say what would be trained, and stop")

    add = command(
        "evaluate", _evaluate, "test a finished run's model again", "ce-keras evaluate run"
    ).add_argument
    add("run_folder", metavar="RUN", type=Path, help="the run's folder")

    add = command(
        "export",
        _export,
        "write a finished run's model for use elsewhere",
        "ce-keras export run --format saved_model",
    ).add_argument
    add("run_folder", metavar="RUN", type=Path, help="the run's folder")
    add("--format", choices=("keras", "saved_model", "litert", "onnx"), default="keras")
    add("--to", type=Path, metavar="PATH", help="where to; beside the run's model if not given")

    add = command(
        "reproduce",
        _reproduce,
        "compute a figure or table of the paper again",
        "ce-keras reproduce fig3 --out reproduction",
    ).add_argument
    add("name", choices=(*NAMES, "all"), metavar="NAME", help=f"{', '.join(NAMES)}; or all")
    add("--scale", choices=("small", "full"), default="small", help="minutes, or as in the paper")
    add("--out", type=Path, default=Path("reproduction"), help="folder (%(default)s)")
    add("--seed", type=int, default=0, help="for reproducible draws and runs (%(default)s)")

    add = command(
        "demo",
        _demo,
        "derive designs, then train them beside their baseline (a few minutes)",
        "ce-keras demo --out demo",
    ).add_argument
    add("--out", type=Path, default=Path("demo"), help="folder for curve.png and results.json")
    add("--epochs", type=int, default=5, help="passes through the images (%(default)s)")
    add("--images", type=int, default=10_000, help="training images (%(default)s)")
    add("--batch-size", type=int, default=64, help="images in a step (%(default)s)")
    add("--source", default="embedded", help="'embedded', 'tfds' or a folder of IDX files")
    add("--seed", type=int, default=0, help="for weights, order and augmentation (%(default)s)")


_MODE_HELP = "primal: smoothest at the baseline's size; dual: smallest at its smoothness"
_ALPHA_HELP = "the variance law's constant, or closed_form; the network's own constant by default"
_WIDTHS_HELP = "only these widths, like 10 or 8,16,24 or 4-64; of fc: its hidden layers, like 500x5"
_TOLERANCE_HELP = "take the widest design this close to the optimum (%(default)s)"


def _alpha(text: str) -> float | str:
    try:
        return text if text == "closed_form" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or closed_form") from None


def _rewrite_alpha(text: str) -> float | str:
    return text if text == "fit" else _alpha(text)


def _widths(text: str) -> list[int]:
    try:
        width, times, count = text.partition("x")
        if times:
            return [int(width)] * int(count)
        first, dash, last = text.partition("-")
        if dash:
            return list(range(int(first), int(last) + 1))
        return [int(width) for width in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a width, a list like 8,16,24, a range like 4-64, or 500x5"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
