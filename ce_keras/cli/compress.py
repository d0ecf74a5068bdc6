"""The command that makes a trained model smaller: compress."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ce_keras.cli.output import file_to_write, show, start_keras, table
from ce_keras.problem import MODES
from ce_keras.training.recipe import AUGMENTATIONS, NORMALIZATIONS


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    add = command(
        "compress",
        _compress,
        "make a trained model smaller: calibrate, distil, evaluate",
        "ce-keras compress model.keras --data FOLDER --mode dual --epochs 3 --save smaller.keras",
    ).add_argument
    add("model", metavar="MODEL.keras", help="a trained classifier of images")
    add(
        "--data",
        required=True,
        metavar="FOLDER",
        help="with train/CLASS and test/CLASS of images; or 'embedded', Fashion-MNIST",
    )
    add("--save", required=True, type=file_to_write, metavar="FILE.keras", help="where to")
    add("--mode", choices=MODES, default="dual", help="the problem (%(default)s)")
    add("--target", type=float, help="0.5: half of the model's parameters; --mode is ignored")
    add(
        "--design",
        default="calibrated",
        help="such as 1x37d; if not given, the nearest of several designs of the optimum's size",
    )
    add("--epochs", type=int, default=3, help="of distillation (%(default)s)")
    add("--images", type=int, default=1000, help="augmented, to calibrate on (%(default)s)")
    add("--batch-size", type=int, default=64, help="images in a step (%(default)s)")
    add("--learning-rate", type=float, default=3e-4, help="of Adam, at first (%(default)s)")
    add(
        "--normalize",
        choices=NORMALIZATIONS,
        default="none",
        help="as in the recipe of the model's training; none: bytes as they are (%(default)s)",
    )
    add("--augment", nargs="+", choices=AUGMENTATIONS, default=(), help="of training images")
    add("--seed", type=int, default=0, help="for all that is drawn (%(default)s)")


def _compress(options: argparse.Namespace) -> None:
    if options.save.suffix != ".keras":
        raise ValueError(f"--save: got {str(options.save)!r}; it must end in .keras")
    start_keras()
    from ce_keras.training.compressing import compress

    names = (
        "mode",
        "target",
        "design",
        "epochs",
        "images",
        "batch_size",
        "learning_rate",
        "normalize",
    )
    arguments = {name: getattr(options, name) for name in names}
    try:
        found = compress(
            options.model,
            options.data,
            options.save,
            augment=tuple(options.augment),
            seed=options.seed,
            **arguments,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from there") from None
    rows = [
        ["", "the model", f"smaller ({found.design})"],
        ["parameters", *(f"{count:,}" for count in found.params)],
        ["FLOPs of an image", *("-" if n is None else f"{n:,}" for n in found.flops)],
        ["ms of a training step", *(f"{1e3 * each:.0f}" for each in found.step_seconds)],
        ["test error, %", *(f"{error:.2f}" for error in found.errors)],
        ["same class, %", "", f"{found.agreement:.1f}"],
    ]
    text = f"{found.report}\n\n{table(rows, left=1)}\nsaved as {options.save}"
    show(options, {**found._asdict(), "saved": str(options.save)}, text)
