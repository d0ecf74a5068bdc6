"""Compare the speed of each recipe's input pipeline with that of its model, in images a second.

The pipeline is measured alone, reading, augmenting and normalising images of the recipe's size.
Images of noise stand in for sets that may not be here: JPEG files of 500 by 375 pixels for
`imagenet`, images in memory for the others. The model takes training steps on a ready batch.

    python benchmarks/pipeline.py [--rounds 5] [--small] [--out docs/benchmarks]
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from timing import Timing, interleaved, report

from ce_keras.training.building import build_loss, build_model, build_optimizer, build_schedule
from ce_keras.training.datasets import KNOWN, ArrayDataset, Dataset, FolderDataset
from ce_keras.training.images import Images
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.recipe import Recipe, read_recipe
from ce_keras.training.strategy import find_strategy
from ce_keras.training.train_step import make_train_step

RECIPES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet32", "imagenet64", "imagenet")

# Images of a model's step: a processor takes minutes for the whole batch of some recipes.
_STEP = 16

_BATCHES = 4


def stand_in(recipe: Recipe, folder: Path) -> Dataset:
    """Return a few batches of noise of the shape of the recipe's images."""
    known = KNOWN[recipe.data.name]
    rng = np.random.default_rng(0)
    if "resized_crop" in recipe.data.augment:
        for half in ("train", "test"):
            (folder / half / "noise").mkdir(parents=True)
        for index in range(_BATCHES * recipe.schedule.batch_size):
            # Coarse noise: a JPEG file of fine noise is larger than one of a photograph.
            image = tf.image.resize(rng.integers(0, 256, (24, 32, 3)), (375, 500))
            encoded = tf.io.encode_jpeg(tf.cast(image, tf.uint8), quality=95)
            half = "test" if index == 0 else "train"
            tf.io.write_file(str(folder / half / "noise" / f"{index}.jpg"), encoded)
        return FolderDataset(folder, known.shape)
    count = _BATCHES * recipe.schedule.batch_size
    images = rng.integers(0, 256, (count, *known.shape)).astype(np.uint8)
    data = Images(images, rng.integers(0, known.classes, count))
    return ArrayDataset(data, data, known.classes)


def training_step(recipe: Recipe, count: int) -> Callable[[], object]:
    """Return a training step of the recipe's model on a ready batch of `count` images."""
    known = KNOWN[recipe.data.name]
    model = build_model(recipe, known.shape, known.classes, seed=0)
    optimizer = build_optimizer(recipe, build_schedule(recipe, 100))
    optimizer.build(model.trainable_variables)
    step = make_train_step(find_strategy(), model, optimizer, build_loss(recipe))
    batch = tf.random.normal((count, *known.shape)), tf.zeros(count, tf.int32)
    return lambda: np.asarray(step(batch, False))  # Wait for the result.


def measured(name: str, folder: Path, rounds: int, small: bool) -> str:
    """Return a row of the table."""
    thin = {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "4"}
    changes = thin if small else {}
    recipe = read_recipe(name, changes)
    dataset = stand_in(recipe, folder / name)
    pipeline = InputPipeline(recipe, dataset, seed=0)
    step = 2 if small else _STEP
    times = interleaved(
        {
            "pipeline": lambda: [len(labels) for _, labels in pipeline.train(0)],
            "step": training_step(recipe, step),
        },
        rounds,
    )
    fed = _rates(times["pipeline"], dataset.counts[0])
    trained = _rates(times["step"], step)
    return (
        f"| {name} | {' + '.join(recipe.data.augment) or 'none'} | {fed} | {trained} "
        f"| {dataset.counts[0] / times['pipeline'].median / (step / times['step'].median):.1f} |"
    )


def _rates(timing: Timing, count: int) -> str:
    times = (timing.high, timing.median, timing.low)
    low, middle, high = (f"{count / seconds:,.0f}" for seconds in times)
    return f"{middle} ({low}-{high})"


def main() -> None:
    """Measure, print and write `pipeline.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="two recipes, few images: a trial")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    names = ("mnist", "imagenet") if options.small else RECIPES
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(name, Path(folder), options.rounds, options.small) for name in names]
    lines = [
        "# Input pipelines beside their models",
        "",
        f"Images a second: medians (quartiles) of {options.rounds} rounds, interleaved; "
        f"{os.cpu_count()} cores, {platform.machine()}. An epoch of the pipeline is {_BATCHES} "
        "batches, its start included; noise stands in for the sets. The last column is how many "
        "times faster the pipeline is than the model's training steps.",
        "",
        "| recipe | augmentation | pipeline | model | ratio |",
        "|---|---|---:|---:|---:|",
        *rows,
    ]
    ratios = [float(row.split("|")[-2]) for row in rows]
    verdict = (
        f"On a CPU every input pipeline is faster than its model's training: {min(ratios):.1f} to "
        f"{max(ratios):,.0f} times."
    )
    report(options.out / "pipeline.md", verdict, lines)


if __name__ == "__main__":
    main()
