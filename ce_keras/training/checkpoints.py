"""Checkpoints of a run: written whole or not at all, and skipped where they are damaged."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ce_keras.files import replacing, sweep

logger = logging.getLogger("ce_keras")

_NAME = re.compile(r"step-[0-9]+\.npz")


class Checkpoints:
    """The last few states of a run, each in a file.

    A state is the values of variables, in a fixed order, and a few plain values. Files are written
    under another name and moved into place; each is a ZIP archive, whose checksums show damage.
    Files and folders of other names are not touched.

    Args:
        folder: of the files.
        variables: Keras variables, whose values are saved.
        keep: number of files.
    """

    def __init__(self, folder: Path, variables: Sequence[Any], keep: int = 3) -> None:
        self._folder = folder
        self._variables = list(variables)
        self._keep = keep
        self._damaged: set[Path] = set()

    def save(self, step: int, content: dict[str, Any]) -> bool:
        """Write the state at a step, then remove the oldest before it.

        Returns:
            Whether it was written. An error, such as a full disk, is logged, and earlier files are
            left alone.
        """
        arrays: dict[str, Any] = {
            f"variable_{i}": np.asarray(v) for i, v in enumerate(self._variables)
        }
        path = self._folder / f"step-{step:09d}.npz"
        try:
            with replacing(path) as part:
                np.savez(part, content=json.dumps(content), **arrays)
        except OSError as error:
            logger.warning("step %d: no checkpoint, and the run goes on: %s", step, error)
            return False
        self._damaged.discard(path)
        self._remove_before(step)
        return True

    def _remove_before(self, step: int) -> None:
        """Remove all but the last good files up to a step.

        Files of later steps could not be restored; they and damaged ones do not count.
        """
        before = [each for each in self._files() if _step(each) <= step]
        good = [each for each in before if each not in self._damaged]
        for old in good[: -self._keep]:
            try:
                old.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s cannot be removed: %s", old, error)

    def restore(self) -> dict[str, Any] | None:
        """Assign the values of the last good file to the variables.

        Returns:
            Its plain values; `None` if there is no good file. Damaged files are skipped, with a
            warning.

        Raises:
            ValueError: for a file of another model.
        """
        for path in reversed(self._files()):
            try:
                content, arrays = _read(path)
            # A damaged file makes NumPy, ZIP and JSON raise errors of many kinds.
            except Exception as error:
                logger.warning("%s is damaged, and skipped: %s", path, error)
                self._damaged.add(path)
                continue
            if [a.shape for a in arrays] != [tuple(v.shape) for v in self._variables]:
                raise ValueError(f"{path}: is of another model; name another folder")
            for variable, array in zip(self._variables, arrays, strict=True):
                variable.assign(array)
            return content
        return None

    def sweep(self) -> None:
        """Remove files that a killed process has left half written."""
        sweep(self._folder / "step-*.npz")

    def _files(self) -> list[Path]:
        named = (each for each in self._folder.glob("step-*.npz") if _NAME.fullmatch(each.name))
        return sorted(filter(Path.is_file, named), key=_step)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return a state's plain values and its arrays.

    Raises:
        Exception: of any kind, for a damaged file; ValueError for other content.
    """
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        content = json.loads(str(file["content"]))
        arrays = [file[f"variable_{i}"] for i in range(len(file.files) - 1)]
    if not _is_state(content):
        raise ValueError("it is not the state of a run")
    if not {array.dtype.kind for array in arrays} <= set("biuf"):
        raise ValueError("it has arrays of other than numbers")
    return content, arrays


def _is_state(content: Any) -> bool:
    """Return whether plain values are the state of a run, with a row for every finished epoch.

    Raises:
        Exception: of any kind, for a value of another type.
    """
    epoch, step, loss, history = (content[key] for key in ("epoch", "step", "loss", "history"))
    names = ("loss", "rate", "error", "top5_error")
    numbers = [0 if loss is None else loss, *(row[name] for row in history for name in names)]
    return (
        type(epoch) is type(step) is int
        and step >= 0
        and len(history) == epoch
        and [row["epoch"] for row in history] == list(range(1, epoch + 1))
        and all(type(each) in (int, float) and math.isfinite(each) for each in numbers)
    )
