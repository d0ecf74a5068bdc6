"""Commands that train, and that reproduce the paper: train, evaluate, export, reproduce, demo."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ce_keras import files
from ce_keras.checks import brief, checked_seed, file_path, positive_int, value_of
from ce_keras.cli.output import (
    file_to_write,
    folder_to_write,
    load_zoo,
    muted_stderr,
    show,
    start_keras,
    table,
)
from ce_keras.designs import DESIGN_MODES


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that train and that reproduce the paper."""
    from ce_keras.reproduce import NAMES

    add = command(
        "train",
        _train,
        "train a network by a recipe, and go on where a run was stopped",
        "ce-keras train fashion_mnist --mode dual --out run",
    ).add_argument
    add("recipe", help="a TOML file, or the name of one that comes with the package")
    add("--mode", choices=DESIGN_MODES, help="the design, instead of the recipe's")
    add(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="like optimizer.learning_rate=0.05; repeatable",
    )
    add("--out", type=folder_to_write, help="folder of the run (runs/RECIPE-MODEL)")
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
    add(
        "--to",
        type=_place_to_write,
        metavar="PATH",
        help="where to; beside the run's model if not given",
    )

    add = command(
        "reproduce",
        _reproduce,
        "compute a figure or table of the paper again",
        "ce-keras reproduce fig3 --out reproduction",
    ).add_argument
    add("name", choices=(*NAMES, "all"), metavar="NAME", help=f"{', '.join(NAMES)}; or all")
    add("--scale", choices=("small", "full"), default="small", help="minutes, or as in the paper")
    add("--set", action="append", metavar="KEY=VALUE", help="like epochs=20; repeatable")
    add("--out", type=folder_to_write, default=Path("reproduction"), help="folder (%(default)s)")
    add("--seed", type=int, default=0, help="for reproducible draws and runs (%(default)s)")

    add = command(
        "demo",
        _demo,
        "derive designs, then train them beside their baseline (a few minutes)",
        "ce-keras demo --out demo",
    ).add_argument
    add(
        "--out",
        type=folder_to_write,
        default=Path("demo"),
        help="folder for curve.png and results.json",
    )
    add("--epochs", type=int, default=4, help="passes through the images (%(default)s)")
    add("--images", type=int, default=8_000, help="training images (%(default)s)")
    add("--batch-size", type=int, default=64, help="images in a step (%(default)s)")
    add("--source", default="embedded", help="'embedded', 'tfds' or a folder of IDX files")
    add("--seed", type=int, default=0, help="for weights, order and augmentation (%(default)s)")


def _train(options: argparse.Namespace) -> None:
    checked_seed(options.seed)
    positive_int("runs", options.runs)
    if options.save_every is not None:
        positive_int("save_every", options.save_every)
    from ce_keras.training.recipe import read_recipe

    changes = dict(_assignment(text) for text in options.set or ())
    recipe = read_recipe(options.recipe, changes)
    if options.mode:
        given = {key for key, text in changes.items() if value_of(text) is not None}
        if twice := {"model.mode", "model.cardinality", "model.width"} & given:
            raise ValueError(f"--mode: got {options.mode!r} and --set {min(twice)}; give one")
        network = dataclasses.replace(recipe.model, mode=options.mode, cardinality=None, width=None)
        recipe = dataclasses.replace(recipe, model=network)
    strategy = _start_training(options.devices)
    from ce_keras.training import run
    from ce_keras.training.datasets import load_dataset
    from ce_keras.training.interruption import Interrupted, Preempted
    from ce_keras.training.trainer import build_for

    if options.dry_run:
        planned = run.plan(recipe)
        show(options, planned, _plan_text(planned))
        return
    dataset = load_dataset(recipe.data)
    model = build_for(recipe, dataset, options.seed, strategy)
    planned = run.plan(recipe, dataset, model)
    out = options.out or Path("runs") / f"{Path(options.recipe).stem}-{planned['model']}"
    if not options.json:
        print(f"{_plan_text(planned)}\nin {out}", flush=True)
    try:
        results = run.train(
            recipe,
            out,
            seed=options.seed,
            runs=options.runs,
            save_every=options.save_every,
            strategy=strategy,
            dataset=dataset,
            model=model,
        )
    except Preempted as ended:
        print(f"ce-keras train: asked to end; {_saved(out, ended.saved)}", file=sys.stderr)
        raise
    except Interrupted as ended:
        raise KeyboardInterrupt(f"interrupted; {_saved(out, ended.saved)}") from None
    show(options, results, _results_text(results, planned, recipe.expected.source))


def _results_text(results: dict[str, Any], planned: dict[str, Any], source: str) -> str:
    text = f"test error {results['error']:.2f}"
    if "standard_error" in results:
        text += f" ± {results['standard_error']:.2f}"
    text += " %"
    if results.get("averaged_over_epochs", 1) > 1:
        text += f" (mean of the last {results['averaged_over_epochs']} epochs)"
    expected, top5 = planned["expected_error"], planned["expected_top5_error"]
    if expected is not None:
        text += f"; the paper: {expected} % ({source})"
    if top5 is not None and "top5_error" in results:
        text += f"; top-5 {results['top5_error']:.2f} %, the paper: {top5} %"
    return text


def _place_to_write(text: str) -> Path:
    """Return the value of an option that names a file, or a folder to write a file into."""
    return Path(text) if text and Path(text[:255]).is_dir() else file_to_write(text)


def _saved(out: Path, saved: bool) -> str:
    if saved:
        return f"all is saved in {out}, and the same command goes on from there"
    return f"the last steps are not saved; the same command goes on from what is in {out}"


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]{0,99}", key):
        raise ValueError(
            f"--set: got {brief(text)}; write KEY=VALUE, like optimizer.learning_rate=0.05"
        )
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
    file_path("RUN", options.run_folder)
    _start_training()
    from ce_keras.training import evaluate

    errors = evaluate(options.run_folder)
    text = f"test error {errors['error']:.2f} %, top-5 {errors['top5_error']:.2f} %"
    show(options, errors, text)


def _export(options: argparse.Namespace) -> None:
    file_path("RUN", options.run_folder)
    _start_training()
    from ce_keras.training import export

    path = export(options.run_folder, options.format, options.to)
    show(options, {"path": str(path)}, f"written to {path}")


def _start_training(devices: Sequence[str] = ()) -> Any:
    """Load the libraries that train, without their messages, and return the strategy.

    With several machines the strategy must be made before the first tensor.
    """
    if "TF_CONFIG" in os.environ:
        print("ce-keras: waiting for the workers that TF_CONFIG names", file=sys.stderr)
    with muted_stderr():
        from ce_keras.training.strategy import find_strategy

        strategy = find_strategy(devices)
        import tensorflow as tf

        import ce_keras.training.run  # noqa: F401

        tf.zeros([])  # On JAX too, TensorFlow loads the images and looks for devices here.
    return strategy


def _reproduce(options: argparse.Namespace) -> None:
    from ce_keras import reproduce

    names = reproduce.NAMES if options.name == "all" else (options.name,)
    changes = dict(_assignment(text) for text in options.set or ())
    settings = {key: value_of(text) for key, text in changes.items()}
    if settings and len(names) > 1:
        raise ValueError(f"--set: got {options.set}; settings are of one figure or table, not all")
    reports = []
    if not set(names) <= reproduce.NUMPY_ONLY:
        start_keras()
    for name in names:
        result = reproduce.reproduce(
            name, options.scale, options.out, seed=options.seed, settings=settings
        )
        reports.append({"name": name, "checks": [check._asdict() for check in result.checks]})
        if not options.json:
            print(f"{result.title}\n{result.paragraph}\n", flush=True)
    if options.json:
        print(json.dumps(reports, indent=2))
    else:
        print(f"Figures, pictures and pages are in {options.out}.")


def _demo(options: argparse.Namespace) -> None:
    from ce_keras import __version__, demo

    settings = {
        name: getattr(options, name)
        for name in ("epochs", "images", "batch_size", "source", "seed")
    }
    if (options.out / "recipe.json").exists():
        raise ValueError(f"--out: {options.out} holds a run of train; name another folder")
    data = demo.load(**settings)  # First, so that wrong settings are errors at once.
    solutions = demo.derive(options.out / "curve.png")
    if not options.json:
        print(_derivation(options, solutions.values()), flush=True)
    load_zoo()
    rows = demo.compare(solutions, data, **settings)
    results = {
        "version": __version__,
        "network": demo.NETWORK,
        "settings": settings,
        "solutions": {mode: solution.to_dict() for mode, solution in solutions.items()},
        "trained": [row._asdict() for row in rows],
    }
    files.write_json(options.out / "results.json", results)
    show(options, results, _comparison(options, rows))


def _derivation(options: argparse.Namespace, solutions: Iterable[Any]) -> str:
    return "\n\n".join(
        [
            "Derived in milliseconds, without training a candidate:",
            *map(str, solutions),
            f"The curves are drawn in {options.out / 'curve.png'}.",
            "Training the baseline, both designs and the narrower baseline on Fashion-MNIST, "
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
            "-" if row.seconds_per_step is None else f"{1e3 * row.seconds_per_step:.1f}",
            f"{row.test_error:.2f} ± {row.test_error_std:.2f} %",
        ]
        for row in rows
    ]
    return (
        f"\n{table([header, *lines], left=2)}\n\n"
        "± is one standard error of the test set alone; another seed moves the errors as much.\n"
        f"All figures are in {options.out / 'results.json'}."
    )
