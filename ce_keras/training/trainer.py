"""One training run in a folder, which resumes where it was stopped.

A step is a function of the recipe, the seed and the number of the step: so are the order of the
images and every random draw. A run that is killed and started again ends with the same weights as
one that was not.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ce_keras import files, zoo
from ce_keras.checks import checked_seed
from ce_keras.progress import progress
from ce_keras.training import records
from ce_keras.training.building import build_loss, build_model, build_optimizer, build_schedule
from ce_keras.training.checkpoints import Checkpoints
from ce_keras.training.datasets import TRAIN, ArrayDataset, Dataset, FolderDataset
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.interruption import Termination
from ce_keras.training.recipe import Recipe
from ce_keras.training.strategy import Batch, Strategy, find_strategy, set_synchronized
from ce_keras.training.train_step import make_test_step, make_train_step
from ce_keras.zoo.building import defaults

logger = logging.getLogger("ce_keras")

#: Epochs at the end whose test errors are averaged, as the paper does; half of them in a short run.
LAST = 10

# Steps between two fetches of their losses: at every fetch the host waits for the device.
_FETCH_EVERY = 20

# Factor of the smoothed loss at every step.
_SMOOTH = 0.98

# No network that learns anything has such a loss.
_EXPLODED = 1e4


class DivergedError(RuntimeError):
    """The loss is not finite any more, or has exploded."""


def build_for(
    recipe: Recipe, dataset: Dataset, seed: int, strategy: Strategy | None = None
) -> keras.Model:
    """Return a recipe's model for a dataset, ready for a `Trainer`.

    Args:
        recipe: its model and its precision are used.
        dataset: the images.
        seed: for the initial weights.
        strategy: the devices; that of `find_strategy` if not given.
    """
    strategy = strategy or find_strategy()
    with defaults(recipe.optimizer.precision), strategy.scope():
        return build_model(recipe, dataset.shape, dataset.classes, seed)


class Trainer:
    """One run of a recipe, in a folder.

    Args:
        recipe: the settings.
        dataset: the images.
        folder: for checkpoints, logs, results and the trained model. A run that was begun there is
            resumed.
        seed: for weights, order and augmentation.
        save_every: steps between checkpoints, beside the one at the end of every epoch.
        strategy: the devices; that of `find_strategy` if not given.
        model: from `build_for` with the same arguments; built if not given.

    Raises:
        ValueError: for a folder that holds a run of another recipe or seed, or of other images, or
            batches that are too small to be shared by all devices.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        folder: str | Path,
        seed: int = 0,
        save_every: int | None = None,
        strategy: Strategy | None = None,
        model: keras.Model | None = None,
    ) -> None:
        checked_seed(seed)
        self.recipe = recipe
        self.folder = Path(folder)
        self.seed = seed
        self._save_every = save_every
        self._strategy = strategy = strategy or find_strategy()
        self._dataset = dataset
        self._images = dataset.counts[TRAIN]
        self.steps = math.ceil(self._images / recipe.schedule.batch_size)
        self._check_batches()
        if strategy.is_chief:
            records.claim(self.folder, recipe, seed, dataset)
        self.model = model or build_for(recipe, dataset, seed, strategy)
        self._schedule = build_schedule(recipe, self.steps)
        with defaults(recipe.optimizer.precision), strategy.scope():
            self.optimizer = build_optimizer(recipe, self._schedule)
            self.optimizer.build(self.model.trainable_variables)
        set_synchronized(self.model, strategy.replicas > 1)
        self.input_pipeline = self._make_pipeline(seed)
        self._variables = [*self.model.variables, *self.optimizer.variables]
        self._checkpoints = Checkpoints(self.folder / "checkpoints", self._variables)
        self._train_step = make_train_step(strategy, self.model, self.optimizer, build_loss(recipe))
        self._test_step = make_test_step(strategy, self.model)
        self._seconds_per_step: list[float] = []

    def _make_pipeline(self, seed: int) -> InputPipeline:
        """Return the input pipeline; a run that is resumed normalises as it did."""
        strategy, begun = self._strategy, None
        if strategy.is_chief:
            begun = records.read_images(self.folder)
        known, _ = strategy.broadcast(begun and [begun[name].tolist() for name in ("mean", "std")])
        statistics = known and (np.float32(known[0]), np.float32(known[1]))
        made = InputPipeline(self.recipe, self._dataset, seed, strategy.shard, statistics)
        if strategy.is_chief and not known:
            records.write_images(self.folder, self.recipe, self._dataset, made.mean, made.std)
        return made

    def _check_batches(self) -> None:
        size, replicas = self.recipe.schedule.batch_size, self._strategy.replicas
        smallest = min(size, self._images % size or size)
        if smallest < replicas:
            raise ValueError(
                f"schedule.batch_size: {self._images} images in batches of {size} leave one of "
                f"{smallest} for {replicas} devices; choose another size, or fewer devices"
            )

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one.

        Returns:
            The content of `results.json`.

        Raises:
            Preempted: after SIGTERM, once the state is saved.
            Interrupted: after Ctrl-C, once the state is saved.
            DivergedError: if the loss is not finite, or exploded.
            ValueError: if another process is training in the folder.
            OSError: if the finished model or its results cannot be written.
        """
        if not self._strategy.is_chief:
            return self._run()
        with files.exclusive("out", self.folder), self._naming_damaged_files():
            for name in records.NAMES:
                files.sweep(self.folder / name)
            self._checkpoints.sweep()
            return self._run()

    @contextlib.contextmanager
    def _naming_damaged_files(self) -> Iterator[None]:
        """Raise an error that names the file, where an image cannot be decoded."""
        try:
            yield
        except tf.errors.InvalidArgumentError:
            wrong = self._dataset.damaged() if isinstance(self._dataset, FolderDataset) else None
            if wrong is None:
                raise
            raise ValueError(wrong) from None

    def _run(self) -> dict[str, Any]:
        state = self._resume()
        if state["epoch"] or state["step"]:
            logger.info("going on from epoch %d, step %d", state["epoch"], state["step"])
        if state["history"] and self._strategy.is_chief:  # It may have been killed before.
            records.write_logs(self.folder, state["history"])
        with Termination() as termination:
            while state["epoch"] < self.recipe.schedule.epochs:
                self._train_epoch(state, termination)
                self._end_epoch(state, termination)
        return self._finish(state["history"])

    def _resume(self) -> dict[str, Any]:
        """Return the state to begin with, and give all workers the chief worker's variables."""
        state = self._checkpoints.restore() if self._strategy.is_chief else None
        arrays = [np.asarray(variable) for variable in self._variables]
        state, arrays = self._strategy.broadcast(state, arrays)
        for variable, array in zip(self._variables, arrays, strict=True):
            variable.assign(array)
        return state or {"epoch": 0, "step": 0, "loss": None, "history": []}

    def _train_epoch(self, state: dict[str, Any], termination: Termination) -> None:
        """Take the remaining steps of an epoch."""
        size, begun = self.recipe.schedule.batch_size, state["step"]
        bar = progress(
            total=self._images,
            initial=begun * size,
            desc=f"epoch {state['epoch'] + 1}/{self.recipe.schedule.epochs}",
            unit="image",
            leave=False,
            disable=not self._strategy.is_chief,
        )
        batches = self._strategy.batches(lambda: self.input_pipeline.train(state["epoch"], begun))
        pending: list[Any] = []  # Results of steps that are still on the device.
        self._untimed = 1  # Compilation, and the start of the pipeline.
        with bar:
            for batch in batches:
                pending.append(self._train_step(batch, termination.requested()))
                state["step"] += 1
                if self._untimed and len(pending) == 1:
                    np.asarray(pending[0])
                    self._clock = time.perf_counter()
                bar.update(min(state["step"] * size, self._images) - bar.n)
                if self._is_fetch_due(state["step"], termination):
                    self._fetch(state, pending, termination)
                    bar.set_postfix(loss=f"{state['loss']:.3f}", refresh=False)

    def _is_save_due(self, step: int) -> bool:
        return self._save_every is not None and step % self._save_every == 0 and step < self.steps

    def _is_fetch_due(self, step: int, termination: Termination) -> bool:
        regular = step % _FETCH_EVERY == 0 or step == self.steps
        return regular or self._is_save_due(step) or self._must_end(termination)

    def _must_end(self, termination: Termination) -> bool:
        # Several workers must end after the same step: they agree on it by the steps' results.
        return self._strategy.is_alone and termination.requested()

    def _fetch(self, state: dict[str, Any], pending: list[Any], termination: Termination) -> None:
        """Fetch the results of the last steps, check their losses, and save the state if due."""
        results = [np.asarray(each) for each in pending]
        pending.clear()
        if timed := len(results) - self._untimed:
            self._seconds_per_step.append((time.perf_counter() - self._clock) / timed)
        self._untimed = 0
        for step, (loss, _) in enumerate(results, state["step"] - len(results)):
            self._check(float(loss), state["epoch"], step)
            kept = _SMOOTH if state["loss"] is not None else 0.0
            state["loss"] = kept * (state["loss"] or 0.0) + (1 - kept) * float(loss)
        if self._must_end(termination) or any(requested for _, requested in results):
            raise termination.reason(self._save(state))
        if self._is_save_due(state["step"]):
            self._save(state)
        self._clock = time.perf_counter()

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not loss < _EXPLODED:
            rate = float(self._schedule(epoch * self.steps + step))
            raise DivergedError(
                f"the loss is {loss} at epoch {epoch + 1}, step {step}, learning rate {rate:.3g}; "
                "try a lower one (--set optimizer.learning_rate=...), a warm-up (--set "
                "schedule.warmup=5) or clipped gradients (--set optimizer.clip=1)"
            )

    def _end_epoch(self, state: dict[str, Any], termination: Termination) -> None:
        """Test the model, save the state and write the logs."""
        if not isinstance(self._dataset, ArrayDataset):
            self._save(state)  # A test image may be damaged.
        errors = error_of(self._test_step, self._test_batches(state, termination))
        # Of the last step, but for those that a scale of the loss made too large.
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        rate = float(self._schedule(max(int(np.asarray(optimizer.iterations)) - 1, 0)))
        row = {"epoch": state["epoch"] + 1, "loss": state["loss"], "rate": rate, **errors}
        state["history"].append(row)
        state.update(epoch=state["epoch"] + 1, step=0)
        self._save(state)
        if self._strategy.is_chief:
            records.write_logs(self.folder, state["history"])
        self._end_if_requested(state, termination)

    def _test_batches(self, state: dict[str, Any], termination: Termination) -> Iterator[Batch]:
        for batch in self._strategy.batches(self.input_pipeline.test):
            self._end_if_requested(state, termination)
            yield batch

    def _end_if_requested(self, state: dict[str, Any], termination: Termination) -> None:
        """End the run outside a step; when it is resumed, the test of the epoch is repeated."""
        if self._must_end(termination):
            raise termination.reason(self._save(state))

    def _save(self, state: dict[str, Any]) -> bool:
        """Save the state, and return whether that could be done."""
        if not self._strategy.is_chief:
            return True
        return self._checkpoints.save(state["epoch"] * self.steps + state["step"], state)

    def _finish(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        last = history[-min(LAST, -(-len(history) // 2)) :]
        seconds = self._seconds_per_step
        results = {
            "design": self.model.name,
            "parameters": zoo.trained_parameters(self.model),
            "error": statistics.mean(row["error"] for row in last),
            "top5_error": statistics.mean(row["top5_error"] for row in last),
            "averaged_over_epochs": len(last),
            "seconds_per_step": statistics.median(seconds) if seconds else None,
            "seed": self.seed,
            "recipe": self.recipe.to_dict(),
            "versions": records.versions(),
            "revision": records.revision(),
            "history": history,
        }
        if self._strategy.is_chief:
            # A saved network has no replicas to synchronise with.
            set_synchronized(self.model, False)
            with files.replacing(self.folder / "model.keras") as part:
                self.model.save(part)
            files.write_json(self.folder / "results.json", results)
        return files.plain(results)


def error_of(test_step: Callable[[Batch], Any], batches: Iterable[Batch]) -> dict[str, float]:
    """Return top-1 and top-5 error in percent, over all images of `batches`.

    Args:
        test_step: from `make_test_step`.
        batches: from `Strategy.batches`.
    """
    counts = [test_step(batch) for batch in batches]  # On the device.
    images, *correct = np.sum([np.asarray(each) for each in counts], axis=0)
    return dict(zip(("error", "top5_error"), 100 * (1 - np.array(correct) / images), strict=True))
