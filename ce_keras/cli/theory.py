"""Commands that derive designs: search, fit-alpha, list."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ce_keras import plotting
from ce_keras.checks import brief, file_path, positive_int
from ce_keras.cli.output import (
    file_to_write,
    load_zoo,
    picture_to_write,
    show,
    start_keras,
    table,
)
from ce_keras.cost import COUNTED, OF_MODELS
from ce_keras.designs import PUBLISHED
from ce_keras.geometry import BASELINES, Module, bottleneck, fully_connected, resnext
from ce_keras.geometry import baseline as named_baseline
from ce_keras.latency import Timing, is_known
from ce_keras.optimum import search, times_key

_MODE_HELP = "primal: least variance at the baseline's size; dual: least size at its variance"
_ALPHA_HELP = "the variance law's constant, or closed_form; the network's own constant by default"
_CORRELATION_HELP = (
    "with --alpha closed_form, of neighbouring pixels: a number (1), or 'embedded' or a folder of "
    "images to measure it on"
)
_WIDTHS_HELP = "only these widths, like 10 or 8,16,24 or 4-64; of fc: its hidden layers, like 500x5"
_TOLERANCE_HELP = "take the widest design this close to the optimum (%(default)s)"


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that derive designs."""
    add = command(
        "search",
        _search,
        "the optimal cardinality and width of a baseline",
        "ce-keras search resnext29 --mode dual --plot curve.png",
    ).add_argument
    add(
        "baseline",
        help=f"one of {', '.join(BASELINES)}, with its width like resnext29-1x226d; a model.keras "
        "of yours; or fc, a fully connected network of --inputs and --widths",
    )
    add("--mode", choices=("primal", "dual"), default="primal", help=_MODE_HELP)
    add("--alpha", type=parse_alpha, metavar="A", help=_ALPHA_HELP)
    add("--correlation", metavar="R", help=_CORRELATION_HELP)
    add_budget(add)
    add("--input-shape", type=_image, metavar="HxWxC", help="of a named network, like 64x64x3")
    add("--dtype", metavar="POLICY", help="of a timed network, like mixed_bfloat16")
    add("--family", metavar="PATTERN", help="of a model with several, the family to search for")
    add("--frontier", type=picture_to_write, metavar="FILE", help="draw the best design by size")
    add("--hard-budget", action="store_true", help="never above it, not even by half a path")
    add("--tolerance", type=float, default=0.02, help=_TOLERANCE_HELP)
    add("--multiple-of", type=int, metavar="K", help="only widths that are multiples of K")
    add("--widths", type=_widths, metavar="N", help=_WIDTHS_HELP)
    add("--inputs", type=int, metavar="N", help="input size of fc")
    add("--outputs", type=int, metavar="N", help="output size of fc (1)")
    add("--plot", type=picture_to_write, metavar="FILE", help="draw the curve (.png, .svg or .pdf)")

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
    add("--checkpoint", type=file_to_write, metavar="FILE", help="file to resume from")
    add("--plot", type=picture_to_write, metavar="FILE", help="draw the fit (.png, .svg or .pdf)")

    add = command(
        "list",
        _list,
        "the paper's designs, with their parameters as published and as counted",
        "ce-keras list",
    ).add_argument
    add("--built", action="store_true", help="count in Keras models that are built for it")


def _search(options: argparse.Namespace) -> None:
    baseline, widths = _described(options)
    if _loads_keras(options):
        start_keras()
    solution = search(
        baseline,
        options.mode,
        alpha=options.alpha,
        correlation=_correlation(options),
        hard_budget=options.hard_budget,
        tolerance=options.tolerance,
        multiple_of=options.multiple_of,
        widths=widths,
        input_shape=options.input_shape,
        dtype=options.dtype,
        family=options.family,
        **budget_of(options),
    )
    solutions = solution if isinstance(solution, dict) else {"": solution}
    if options.plot:
        plotting.save_curves(list(solutions.values()), options.plot)
    if options.frontier:
        frontiers = [each.frontier() for each in solutions.values()]
        plotting.save_curves(frontiers, options.frontier)
    contents = {name: each.to_dict() for name, each in solutions.items()}
    texts = [f"{name}\n{each!r}".strip() for name, each in solutions.items()]
    show(options, contents.get("", contents), "\n\n".join(texts))


def add_budget(add: Callable[..., Any]) -> None:
    """Add the options that say what a design may cost."""
    add(
        "--budget",
        type=_budget,
        default="params",
        metavar="COST",
        help="what counts as size: params, flops, latency (measured on this machine) or memory "
        "(activations of a training step); or several: params,latency (%(default)s)",
    )
    add("--target", type=float, metavar="RATIO", help="0.5: the smoothest design of half the size")
    add("--target-params", type=int, metavar="N", help="the smoothest design of so many parameters")
    add("--batch", type=int, default=32, help="examples in a timed step (%(default)s)")
    add("--phase", choices=("train", "infer"), default="train", help="what to time (%(default)s)")
    add("--remeasure", action="store_true", help="time again what was timed before")


def budget_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that say what a design may cost."""
    names = ("budget", "target", "target_params", "batch", "phase", "remeasure")
    return {name: getattr(options, name) for name in names}


def _budget(text: str) -> str | tuple[str, ...]:
    asked = tuple(text.split(","))
    known = (*COUNTED, *OF_MODELS)
    for each in asked:
        if each not in known:
            raise argparse.ArgumentTypeError(
                f"{brief(each)} is none of {', '.join(known)}; several are written params,latency"
            )
    return asked if len(asked) > 1 else asked[0]


def _image(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split("x")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{brief(text)} is not a shape like 32x32x3") from None


def _loads_keras(options: argparse.Namespace) -> bool:
    """Return whether a search loads Keras: for a model, and to measure what is not known yet."""
    asked = options.budget if isinstance(options.budget, tuple) else (options.budget,)
    if options.baseline.endswith(".keras") or "memory" in asked:
        return True
    if "latency" not in asked or options.baseline == "fc":
        return False
    network = named_baseline(options.baseline)
    key = times_key(network, options.input_shape, options.dtype)
    return not is_known(key, Timing(options.batch, options.phase, options.remeasure))


def _described(options: argparse.Namespace) -> tuple[str | Module, list[int] | None]:
    """Return the baseline and the widths to consider; `fc` is described by its sizes."""
    if options.baseline == "fc":
        return _fully_connected(options, 1 if options.outputs is None else options.outputs), None
    for name in ("inputs", "outputs"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: only fc takes it; {options.baseline} has its own")
    return options.baseline, options.widths


def _correlation(options: argparse.Namespace) -> Any:
    """Return the value of `--correlation`: a number, given or measured on images."""
    text = options.correlation
    if text is None:
        return None
    if options.alpha != "closed_form":  # Before anything is measured.
        raise ValueError(f"--correlation: got {text}; it goes with --alpha closed_form only")
    try:
        return float(text)
    except ValueError:
        if text != "embedded" and not file_path("--correlation", text).is_dir():
            raise ValueError(
                f"--correlation: got {brief(text)}; it must be a number, 'embedded', or a folder "
                "of images"
            ) from None
    start_keras()
    from ce_keras.training.datasets import sample_images
    from ce_keras.variance import measure_correlation

    network = options.baseline.replace("_", "-").partition("-")[0]
    return measure_correlation(network, sample_images(text))


def _fit_alpha(options: argparse.Namespace) -> None:
    from ce_keras.ntk import fit_alpha

    if options.method in ("ensemble", "tape"):
        start_keras()
    fit = fit_alpha(
        _module(options),
        draws=options.draws,
        method=options.method,
        parameterization=options.parameterization,
        seed=options.seed,
        checkpoint=options.checkpoint,
    )
    if options.plot:
        plotting.save_curves([fit], options.plot)
    points = zip(
        fit.width.tolist(), fit.log_ratio.tolist(), fit.log_ratio_error.tolist(), strict=True
    )
    content = {
        **{name: getattr(fit, name) for name in ("module", "method", "draws", "alpha")},
        **{name: getattr(fit, name) for name in ("alpha_error", "intercept", "holds")},
        "points": [{"width": n, "log_ratio": y, "error": error} for n, y, error in points],
    }
    show(options, content, repr(fit))


def _module(options: argparse.Namespace) -> Module:
    if options.module == "bottleneck":
        if options.widths is not None:
            raise ValueError("--widths: only fc takes it; the block's widths are 1 to 256")
        if options.inputs is not None:
            positive_int("--inputs", options.inputs)
        return bottleneck(256 if options.inputs is None else options.inputs, 256)
    return _fully_connected(options)


def _fully_connected(options: argparse.Namespace, outputs: int = 1) -> Module:
    if options.inputs is None or options.widths is None:
        raise ValueError("fc: needs its sizes, like --inputs 748 --widths 500x5")
    return fully_connected(options.inputs, options.widths, outputs, name="fc")


def _list(options: argparse.Namespace) -> None:
    zoo = load_zoo() if options.built else None
    rows = []
    for row in PUBLISHED:
        network, (m, n) = resnext(row.network), row.design
        parameters = int(network.params(m, n))
        if zoo is not None:
            model = zoo.NETWORKS[row.network](cardinality=m, width=n)
            parameters = zoo.trained_parameters(model)
        decimals = len(f"{row.millions}".partition(".")[2])
        rows.append(
            {
                "network": row.network,
                "mode": row.mode,
                "design": str(row.design),
                "table": row.table,
                "published_millions": row.millions,
                "parameters": parameters,
                # To one unit in the last printed place.
                "agrees": abs(parameters / 1e6 - row.millions) < 10**-decimals,
                "flops": int(network.flops(m, n)),
            }
        )
    header = ["network", "mode", "design", "table", "published", "parameters", "FLOPs"]
    lines = [
        [
            *(row[name] for name in header[:4]),
            f"{row['published_millions']:g}M",
            f"{row['parameters']:,}" + ("" if row["agrees"] else " (differs)"),
            f"{row['flops']:,}",
        ]
        for row in rows
    ]
    show(options, rows, table([header, *lines], left=4))


def parse_alpha(text: str) -> float | str:
    """Return the value of `--alpha`."""
    try:
        return text if text == "closed_form" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{brief(text)} is not a number or closed_form") from None


# Largest number of widths in one argument: more are a mistake.
_MOST_WIDTHS = 100_000


def _widths(text: str) -> list[int]:
    try:
        width, times, count = text.partition("x")
        if times:
            return [int(width)] * _count_of_widths(text, int(count))
        first, dash, last = text.partition("-")
        if dash:
            count_of = _count_of_widths(text, int(last) + 1 - int(first))
            return list(range(int(first), int(first) + count_of))
        return [int(width) for width in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{brief(text)} is not a width, a list like 8,16,24, a range like 4-64, or 500x5"
        ) from None


def _count_of_widths(text: str, count: int) -> int:
    if not 1 <= count <= _MOST_WIDTHS:
        raise argparse.ArgumentTypeError(
            f"{brief(text)} are {brief(count)} widths; it must be 1 to {_MOST_WIDTHS:,}"
        )
    return count
