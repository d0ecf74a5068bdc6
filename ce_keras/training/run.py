"""A training run: a recipe, a folder, and a loop that goes on where it was stopped.

What happens at a step depends on the recipe, the seed and the step alone: the order of the images
and every random draw are functions of these. So a run that is killed and started again ends with
the same weights as one that was not.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from ce_keras import files, plotting, zoo
from ce_keras.checks import checked_seed
from ce_keras.training import augment
from ce_keras.training.checkpoints import Checkpoints
from ce_keras.training.data import steady
from ce_keras.training.optimizer import CoupledSGD, StepSchedule
from ce_keras.training.recipe import Recipe
from ce_keras.training.sources import Arrays, Stream

logger = logging.getLogger("ce_keras")

#: Epochs at the end whose test errors are averaged, as the paper does; of a short run, half.
LAST = 10

# How much of the smoothed loss is kept at every step.
_SMOOTH = 0.98

# No network that learns anything has such a loss.
_EXPLODED = 1e4

# Batches prepared ahead.
_AHEAD = 2


class Preempted(SystemExit):
    """The run was asked to end (SIGTERM), and its state is saved. Exit code 75: try again."""

    def __init__(self) -> None:
        super().__init__(75)


class DivergedError(RuntimeError):
    """The loss is not a number any more, or beyond all hope."""


def build_model(recipe: Recipe, shape: tuple[int, ...], classes: int, seed: int) -> keras.Model:
    """The recipe's network, with logits as its output.

    Args:
        recipe: whose model section counts.
        shape: of an image.
        classes: how many.
        seed: for the initial weights.
    """
    model = recipe.model
    own_design = model.cardinality is not None or model.width is not None
    options: dict[str, Any] = {
        "mode": None if own_design else model.mode,
        "cardinality": model.cardinality,
        "width": model.width,
        "classes": classes,
        "classifier_activation": None,
        "seed": seed,
        "input_shape": shape,
    }
    if model.name == "fully_connected":
        return zoo.fully_connected(depth=model.depth, base=model.base, **options)
    return zoo.NETWORKS[model.name](**options)


def build_schedule(recipe: Recipe, steps: int) -> StepSchedule:
    """The recipe's learning rate, for epochs of so many steps."""
    schedule = recipe.schedule
    scale = schedule.batch / schedule.rate_for if schedule.rate_for else 1.0
    return StepSchedule(
        recipe.optimizer.rate * scale,
        [epoch * steps for epoch in schedule.divide_at],
        schedule.divide_by,
        schedule.warmup * steps,
    )


def build_optimizer(recipe: Recipe, rate: StepSchedule) -> keras.optimizers.Optimizer:
    """The recipe's optimiser, with a schedule."""
    optimizer = recipe.optimizer
    clip = optimizer.clip or None
    if optimizer.name == "adam":
        return keras.optimizers.Adam(rate, global_clipnorm=clip)
    return CoupledSGD(rate, optimizer.momentum, optimizer.decay, global_clipnorm=clip)


# Images ------------------------------------------------------------------------------------------


class Feed:
    """Batches of a recipe's images: augmented for training, normalised, and prepared ahead.

    Args:
        recipe: whose data section counts.
        source: the images.
        seed: for order and augmentation.
    """

    def __init__(self, recipe: Recipe, source: Arrays | Stream, seed: int) -> None:
        self._data = recipe.data
        self._source = source
        self._seed = seed
        self._batch = recipe.schedule.batch
        self._size: tuple[int, int] = (source.shape[0], source.shape[1])
        self._boxes = "resized_crop" in recipe.data.augment
        self._mean, self._deviation = self._statistics()

    def train(self, epoch: int, step: int = 0) -> Any:
        """(images, labels) of an epoch, from a step on."""
        images = self._source.train(self._seed, epoch, step * self._batch)
        seeds = tf.random.split(tf.constant([self._seed, epoch]), 2)
        if self._boxes:
            images = images.enumerate(step * self._batch).map(
                lambda index, image: (self._box(image[0], seeds[0], index), image[1])
            )
        batches = images.batch(self._batch).enumerate(step)

        def augmented(index: Any, batch: tuple[Any, Any]) -> tuple[Any, Any]:
            seed = tf.random.fold_in(seeds[1], tf.cast(index, tf.int32))
            return self._normalised(self._augmented(batch[0], seed)), batch[1]

        return batches.map(augmented).prefetch(_AHEAD).with_options(steady())

    def test(self) -> Any:
        """(images, labels) of the test images."""
        images = self._source.test()
        if self._boxes:
            images = images.map(lambda x, label: (augment.central_crop(x, self._size), label))
        batches = images.batch(self._batch).map(lambda x, label: (self._normalised(x), label))
        return batches.prefetch(_AHEAD).with_options(steady())

    def _box(self, image: Any, seed: Any, index: Any) -> Any:
        seed = tf.random.fold_in(seed, tf.cast(index, tf.int32))
        return augment.resized_crop(image, seed, self._size)

    def _augmented(self, images: Any, seed: Any) -> Any:
        seeds = tf.random.split(seed, 3)
        if "crop" in self._data.augment:
            images = augment.crop(images, seeds[0], self._data.pad)
        if "flip" in self._data.augment:
            images = augment.flip(images, seeds[1])
        if "jitter" in self._data.augment:
            images = augment.jitter(images, seeds[2], self._data.jitter)
        return images

    def _normalised(self, images: Any) -> Any:
        return (tf.cast(images, tf.float32) - self._mean) / self._deviation

    def _statistics(self) -> tuple[Any, Any]:
        """What is subtracted and divided by, from the training images."""
        if self._boxes:
            return IMAGENET_MEAN, IMAGENET_DEVIATION
        axes = {"channel": (0, 1, 2), "global": None, "mean_image": 0}[self._data.normalize]
        if isinstance(self._source, Arrays):
            images = self._source.images[0].images
            mean = images.mean(axis=axes, dtype=np.float64)
            deviation = images.std(axis=axes if axes != 0 else None, dtype=np.float64)
        else:
            mean, deviation = _streamed_statistics(self._source, axes)
        return np.float32(mean), np.float32(np.maximum(deviation, 1e-3))


#: The usual mean and deviation of ImageNet's red, green and blue.
IMAGENET_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
IMAGENET_DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)


def _streamed_statistics(source: Stream, axes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation from one pass over images that do not fit into memory."""
    shape = source.shape
    sums, count = np.zeros((2, *shape)), 0
    batches = source.train(0, 0, 0).batch(1000)
    for images, _ in tqdm(batches, desc="mean image", total=math.ceil(source.counts[0] / 1000)):
        pixels = images.numpy().astype(np.float64)
        sums += np.stack([pixels.sum(axis=0), (pixels**2).sum(axis=0)])
        count += len(pixels)
    mean, square = sums / count
    if axes == 0:
        return mean, np.sqrt(square.mean() - mean.mean() ** 2)
    kept = (0, 1) if axes is not None else None
    return mean.mean(axis=kept), np.sqrt(square.mean(axis=kept) - mean.mean(axis=kept) ** 2)


# The loop ----------------------------------------------------------------------------------------


def claim(folder: Path, recipe: Recipe, seed: int) -> None:
    """Make a folder a run's own, or find that it is.

    Raises:
        ValueError: if it holds a run of another recipe or seed.
    """
    path = folder / "recipe.json"
    own = {"recipe": recipe.to_dict(), "seed": seed}
    # As JSON has it: tuples are lists there.
    if path.exists() and files.read_json(path) != files.plain(own):
        raise ValueError(
            f"out: {folder} holds a run of another recipe or seed; name another folder"
        )
    files.write_json(path, own)


class Trainer:
    """One run of a recipe, in a folder.

    Args:
        recipe: what to do.
        source: the images.
        folder: for checkpoints, logs, results and the trained model. A run that was begun there
            goes on.
        seed: for weights, order and augmentation.
        save_every: steps between checkpoints, beside the one at the end of every epoch.

    Raises:
        ValueError: for a folder that holds a run of another recipe or seed.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Arrays | Stream,
        folder: str | Path,
        seed: int = 0,
        save_every: int | None = None,
    ) -> None:
        checked_seed(seed)
        self.recipe = recipe
        self.folder = Path(folder)
        self.seed = seed
        self._save_every = save_every
        claim(self.folder, recipe, seed)
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(recipe.optimizer.precision)
        try:
            self.model = build_model(recipe, source.shape, source.classes, seed)
        finally:
            keras.config.set_dtype_policy(policy)
        self.steps = math.ceil(source.counts[0] / recipe.schedule.batch)
        self._rate = build_schedule(recipe, self.steps)
        self.optimizer = build_optimizer(recipe, self._rate)
        if recipe.optimizer.precision == "mixed_float16":
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(self.model.trainable_variables)
        self.feed = Feed(recipe, source, seed)
        self._counts = source.counts
        self._checkpoints = Checkpoints(
            self.folder / "checkpoints", [*self.model.variables, *self.optimizer.variables]
        )
        self._step = tf.function(self._train_step, autograph=False, reduce_retracing=True)

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one.

        Returns:
            What `results.json` holds.

        Raises:
            Preempted: after SIGTERM, once the state is saved.
            DivergedError: if the loss is not a number, or exploded.
        """
        state = self._checkpoints.restore() or {"epoch": 0, "step": 0, "loss": None, "history": []}
        if state["epoch"] or state["step"]:
            logger.info("going on from epoch %d, step %d", state["epoch"], state["step"])
        with _termination() as asked_to_end:
            while state["epoch"] < self.recipe.schedule.epochs:
                self._epoch(state, asked_to_end)
        return self._finish(state["history"])

    def _epoch(self, state: dict[str, Any], asked_to_end: Callable[[], bool]) -> None:
        epoch = state["epoch"]
        bar = tqdm(
            total=self._counts[0],
            initial=state["step"] * self.recipe.schedule.batch,
            desc=f"epoch {epoch + 1}/{self.recipe.schedule.epochs}",
            unit="image",
            leave=False,
        )
        with bar:
            for images, labels in self.feed.train(epoch, state["step"]):
                loss = float(self._step(images, labels))
                self._check(loss, epoch, state["step"])
                kept = _SMOOTH if state["loss"] is not None else 0.0
                state["loss"] = kept * (state["loss"] or 0.0) + (1 - kept) * loss
                state["step"] += 1
                bar.update(len(labels))
                bar.set_postfix(loss=f"{state['loss']:.3f}", refresh=False)
                due = self._save_every and state["step"] % self._save_every == 0
                if asked_to_end():
                    self._save(state)
                    raise Preempted
                if due and state["step"] < self.steps:
                    self._save(state)
        errors = error_of(self.model, self.feed.test())
        rate = float(self._rate(epoch * self.steps + state["step"] - 1))  # The last step's.
        state["history"].append({"epoch": epoch + 1, "loss": state["loss"], "rate": rate, **errors})
        state.update(epoch=epoch + 1, step=0)
        self._save(state)
        self._log(state["history"])

    def _train_step(self, images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = tf.cast(self.model(images, training=True), tf.float32)
            loss = tf.reduce_mean(self._losses(logits, labels))
            scaled = loss
            if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
                scaled = self.optimizer.scale_loss(loss)
        variables = self.model.trainable_variables
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
        return loss

    def _losses(self, logits: Any, labels: Any) -> Any:
        smoothing = self.recipe.optimizer.smoothing
        if not smoothing:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        classes = logits.shape[-1]
        wanted = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        return tf.nn.softmax_cross_entropy_with_logits(wanted, logits)

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not loss < _EXPLODED:
            rate = float(self._rate(epoch * self.steps + step))
            raise DivergedError(
                f"the loss is {loss} at epoch {epoch + 1}, step {step}, rate {rate:.3g}; try a "
                "lower rate (--set optimizer.rate=...), a warm-up (--set schedule.warmup=5) or "
                "clipped gradients (--set optimizer.clip=1)"
            )

    def _save(self, state: dict[str, Any]) -> None:
        self._checkpoints.save(state["epoch"] * self.steps + state["step"], state)

    def _log(self, history: list[dict[str, Any]]) -> None:
        with files.replacing(self.folder / "history.csv") as part:
            rows = [",".join(history[0]), *(",".join(map(str, row.values())) for row in history)]
            part.write_text("\n".join(rows) + "\n")
        plotting.save_learning_curves(history, self.folder / "curves.png")
        if importlib.util.find_spec("tensorboard") is None:
            return
        with tf.summary.create_file_writer(str(self.folder / "tensorboard")).as_default():
            last = history[-1]
            for name in ("loss", "rate", "error", "top5_error"):
                tf.summary.scalar(name, last[name], step=last["epoch"])

    def _finish(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        last = history[-min(LAST, -(-len(history) // 2)) :]
        self.model.save(self.folder / "model.keras")
        results = {
            "design": self.model.name,
            "parameters": zoo.trained_parameters(self.model),
            "error": statistics.mean(row["error"] for row in last),
            "top5_error": statistics.mean(row["top5_error"] for row in last),
            "averaged_over_epochs": len(last),
            "seed": self.seed,
            "recipe": self.recipe.to_dict(),
            "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
            "history": history,
        }
        files.write_json(self.folder / "results.json", results)
        return files.plain(results)


def error_of(model: keras.Model, batches: Any) -> dict[str, float]:
    """Top-1 and top-5 error in percent, over all images of `batches`."""

    @tf.function(autograph=False, reduce_retracing=True)
    def right(images: Any, labels: Any) -> Any:
        logits = tf.cast(model(images, training=False), tf.float32)
        found = [tf.math.in_top_k(tf.cast(labels, tf.int32), logits, k) for k in (1, 5)]
        return tf.reduce_sum(tf.cast(tf.stack(found), tf.int32), axis=1)

    total, count = np.zeros(2, int), 0
    for images, labels in batches:
        total += right(images, labels).numpy()
        count += len(labels)
    top1, top5 = (100 * (1 - total / count)).tolist()
    return {"error": top1, "top5_error": top5}


@contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, without dying of it. Only the main thread can be told."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
