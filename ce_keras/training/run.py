"""A training run: a recipe, a folder, and a loop that goes on where it was stopped.

What happens at a step depends on the recipe, the seed and the step alone: the order of the images
and every random draw are functions of these. So a run that is killed and started again ends with
the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import shutil
import signal
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from ce_keras import files, plotting, zoo
from ce_keras.checks import checked_seed
from ce_keras.progress import progress
from ce_keras.training.checkpoints import Checkpoints
from ce_keras.training.devices import Batch, Devices, find_devices, synchronise
from ce_keras.training.feed import Feed
from ce_keras.training.optimizer import CoupledSGD, StepSchedule
from ce_keras.training.recipe import Recipe
from ce_keras.training.sources import Folder, Source
from ce_keras.zoo.defaults import defaults

logger = logging.getLogger("ce_keras")

#: Epochs at the end whose test errors are averaged, as the paper does; of a short run, half.
LAST = 10

# How much of the smoothed loss is kept at every step.
_SMOOTH = 0.98

# No network that learns anything has such a loss.
_EXPLODED = 1e4


class Preempted(SystemExit):
    """The run was asked to end by SIGTERM, and its state is saved. Exit code 75: try again."""

    def __init__(self) -> None:
        super().__init__(75)


class Interrupted(KeyboardInterrupt):
    """The run was interrupted by Ctrl-C, and its state is saved."""


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


def claim(folder: Path, recipe: Recipe, seed: int) -> None:
    """Make a folder a run's own, or find that it is.

    Raises:
        ValueError: if it holds a run of another recipe or seed.
    """
    path = folder / "recipe.json"
    own = {"recipe": recipe.to_dict(), "seed": seed}
    if not path.exists():
        files.write_json(path, own)
        return
    found = files.read_json(path, dict)
    if not own.keys() <= found.keys():
        raise ValueError(f"out: {path} is damaged: it has no {' and '.join(own)}")
    # As JSON has it: tuples are lists there.
    if found != files.plain(own):
        raise ValueError(
            f"out: {folder} holds a run of another recipe or seed; name another folder"
        )


class Trainer:
    """One run of a recipe, in a folder.

    Args:
        recipe: what to do.
        source: the images.
        folder: for checkpoints, logs, results and the trained model. A run that was begun there
            goes on.
        seed: for weights, order and augmentation.
        save_every: steps between checkpoints, beside the one at the end of every epoch.
        devices: what trains; those of `find_devices` if not given.

    Raises:
        ValueError: for a folder that holds a run of another recipe or seed, or batches that are
            too small to be shared by all devices.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        folder: str | Path,
        seed: int = 0,
        save_every: int | None = None,
        devices: Devices | None = None,
    ) -> None:
        checked_seed(seed)
        self.recipe = recipe
        self.folder = Path(folder)
        self.seed = seed
        self._save_every = save_every
        self._devices = devices = devices or find_devices()
        self._source = source
        self._counts = source.counts
        self.steps = math.ceil(source.counts[0] / recipe.schedule.batch)
        self._check_batches()
        if devices.chief:
            claim(self.folder, recipe, seed)
        with defaults(recipe.optimizer.precision), devices.scope():
            self.model = build_model(recipe, source.shape, source.classes, seed)
            self._rate = build_schedule(recipe, self.steps)
            self.optimizer = build_optimizer(recipe, self._rate)
            if recipe.optimizer.precision == "mixed_float16":
                self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
            self.optimizer.build(self.model.trainable_variables)
        synchronise(self.model, devices.replicas > 1)
        self.feed = Feed(recipe, source, seed, devices.part)
        self._variables = [*self.model.variables, *self.optimizer.variables]
        self._checkpoints = Checkpoints(self.folder / "checkpoints", self._variables)
        self._step = devices.trainer(self.model, self.optimizer, self._losses)
        self._count = devices.tester(self.model)

    def _check_batches(self) -> None:
        batch, replicas = self.recipe.schedule.batch, self._devices.replicas
        smallest = min(batch, self._counts[0] % batch or batch)
        if smallest < replicas:
            raise ValueError(
                f"schedule.batch: {self._counts[0]} images in batches of {batch} leave one of "
                f"{smallest} for {replicas} devices; choose another batch, or fewer devices"
            )

    def run(self) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one.

        Returns:
            What `results.json` holds.

        Raises:
            Preempted: after SIGTERM, once the state is saved.
            Interrupted: after Ctrl-C, once the state is saved.
            DivergedError: if the loss is not a number, or exploded.
            ValueError: if another process is training in the folder.
            OSError: if the finished model or its results cannot be written.
        """
        if not self._devices.chief:
            return self._run()
        with files.exclusive("out", self.folder), self._naming_damaged_files():
            for name in ("recipe.json", "history.csv", "curves.png", "model.keras", "results.json"):
                files.sweep(self.folder / name)
            self._checkpoints.sweep()
            return self._run()

    @contextlib.contextmanager
    def _naming_damaged_files(self) -> Iterator[None]:
        """Have an image that cannot be decoded end the run with the name of its file."""
        try:
            yield
        except tf.errors.InvalidArgumentError:
            wrong = self._source.damaged() if isinstance(self._source, Folder) else None
            if wrong is None:
                raise
            raise ValueError(wrong) from None

    def _run(self) -> dict[str, Any]:
        state = self._resume()
        if state["epoch"] or state["step"]:
            logger.info("going on from epoch %d, step %d", state["epoch"], state["step"])
        with _Termination() as asked_to_end:
            while state["epoch"] < self.recipe.schedule.epochs:
                self._epoch(state, asked_to_end)
        return self._finish(state["history"])

    def _resume(self) -> dict[str, Any]:
        """Where to begin: all processes with the chief's variables."""
        state = self._checkpoints.restore() if self._devices.chief else None
        arrays = [np.asarray(variable) for variable in self._variables]
        state, arrays = self._devices.chiefs(state, arrays)
        for variable, array in zip(self._variables, arrays, strict=True):
            variable.assign(array)
        return state or {"epoch": 0, "step": 0, "loss": None, "history": []}

    def _epoch(self, state: dict[str, Any], asked_to_end: _Termination) -> None:
        epoch = state["epoch"]
        bar = progress(
            total=self._counts[0],
            initial=state["step"] * self.recipe.schedule.batch,
            desc=f"epoch {epoch + 1}/{self.recipe.schedule.epochs}",
            unit="image",
            leave=False,
            disable=not self._devices.chief,
        )
        batches = self._devices.batches(lambda: self.feed.train(epoch, state["step"]))
        with bar:
            for batch in batches:
                loss, any_asked = self._step(batch, asked_to_end())
                self._check(loss, epoch, state["step"])
                kept = _SMOOTH if state["loss"] is not None else 0.0
                state["loss"] = kept * (state["loss"] or 0.0) + (1 - kept) * loss
                state["step"] += 1
                done = state["step"] * self.recipe.schedule.batch
                bar.update(min(done, self._counts[0]) - bar.n)
                bar.set_postfix(loss=f"{state['loss']:.3f}", refresh=False)
                due = self._save_every and state["step"] % self._save_every == 0
                if any_asked:
                    self._save(state)
                    raise asked_to_end.how()
                if due and state["step"] < self.steps:
                    self._save(state)
        errors = error_of(self._count, self._tests(state, asked_to_end))
        rate = float(self._rate(epoch * self.steps + state["step"] - 1))  # The last step's.
        state["history"].append({"epoch": epoch + 1, "loss": state["loss"], "rate": rate, **errors})
        state.update(epoch=epoch + 1, step=0)
        self._save(state)
        self._log(state["history"])
        self._end_if_asked(state, asked_to_end)

    def _tests(self, state: dict[str, Any], asked_to_end: _Termination) -> Iterator[Batch]:
        for batch in self._devices.batches(self.feed.test):
            self._end_if_asked(state, asked_to_end)
            yield batch

    def _end_if_asked(self, state: dict[str, Any], asked_to_end: _Termination) -> None:
        """End the run outside a step, where several machines could not agree to.

        A state in which all steps of an epoch are done goes on with its test.
        """
        if self._devices.alone and asked_to_end():
            self._save(state)
            raise asked_to_end.how()

    def _losses(self, logits: Any, labels: Any) -> Any:
        smoothing = self.recipe.optimizer.smoothing
        if not smoothing:
            return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        classes = logits.shape[-1]
        wanted = ops.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        return ops.categorical_crossentropy(wanted, logits, from_logits=True)

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not loss < _EXPLODED:
            rate = float(self._rate(epoch * self.steps + step))
            raise DivergedError(
                f"the loss is {loss} at epoch {epoch + 1}, step {step}, rate {rate:.3g}; try a "
                "lower rate (--set optimizer.rate=...), a warm-up (--set schedule.warmup=5) or "
                "clipped gradients (--set optimizer.clip=1)"
            )

    def _save(self, state: dict[str, Any]) -> None:
        if self._devices.chief:
            self._checkpoints.save(state["epoch"] * self.steps + state["step"], state)

    def _log(self, history: list[dict[str, Any]]) -> None:
        if not self._devices.chief:
            return
        for write in (self._write_history, self._draw_history, self._write_tensorboard):
            try:
                write(history)
            # A full disk costs the logs, not the run.
            except (OSError, tf.errors.OpError) as error:
                logger.warning("a log is not written, and the run goes on: %s", error)

    def _write_history(self, history: list[dict[str, Any]]) -> None:
        with files.replacing(self.folder / "history.csv") as part:
            rows = [",".join(history[0]), *(",".join(map(str, row.values())) for row in history)]
            part.write_text("\n".join(rows) + "\n")

    def _draw_history(self, history: list[dict[str, Any]]) -> None:
        plotting.save_learning_curves(history, self.folder / "curves.png")

    def _write_tensorboard(self, history: list[dict[str, Any]]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        with tf.summary.create_file_writer(str(self.folder / "tensorboard")).as_default():
            last = history[-1]
            for name in ("loss", "rate", "error", "top5_error"):
                tf.summary.scalar(name, last[name], step=last["epoch"])

    def _finish(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        last = history[-min(LAST, -(-len(history) // 2)) :]
        results = {
            "design": self.model.name,
            "parameters": zoo.trained_parameters(self.model),
            "error": statistics.mean(row["error"] for row in last),
            "top5_error": statistics.mean(row["top5_error"] for row in last),
            "averaged_over_epochs": len(last),
            "seed": self.seed,
            "recipe": self.recipe.to_dict(),
            "versions": _versions(),
            "revision": _revision(),
            "history": history,
        }
        if not self._devices.chief:
            return files.plain(results)
        # A network that is loaded elsewhere is one: it has nobody to synchronise with.
        synchronise(self.model, False)
        with files.replacing(self.folder / "model.keras") as part:
            self.model.save(part)
        files.write_json(self.folder / "results.json", results)
        return files.plain(results)


def _versions() -> dict[str, str]:
    names = {"ce_keras", "keras", "tensorflow", keras.backend.backend()}
    return {name: importlib.import_module(name).__version__ for name in sorted(names)}


def _revision() -> str | None:
    """Return the commit of the git repository that the run was started in, if it was in one.

    Whether files differ from it is not asked: git would run what the repository's configuration
    names to find out, and the folder need not be one that anybody trusts.
    """
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-c", "core.fsmonitor=false", "rev-parse", "--verify", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def error_of(count: Callable[[Batch], np.ndarray], batches: Iterable[Batch]) -> dict[str, float]:
    """Top-1 and top-5 error in percent, over all images of `batches`.

    Args:
        count: from `Devices.tester`.
        batches: from `Devices.batches`.
    """
    images, *right = sum(map(count, batches), np.zeros(3, int))
    return dict(zip(("error", "top5_error"), 100 * (1 - np.array(right) / images), strict=True))


class _Termination:
    """Takes note of SIGTERM and Ctrl-C, so that the step in work ends and the state is saved.

    A second Ctrl-C ends the process at once. Only the main thread can be told.
    """

    how: Callable[[], BaseException] = Preempted

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Termination:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether the run is asked to end."""
        return self._asked.is_set()

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self._asked.is_set():
                raise KeyboardInterrupt
            self.how = Interrupted
        self._asked.set()
