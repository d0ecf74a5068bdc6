"""Checkpoints: whole, few, and never the reason that a run is lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ce_keras.checks import brief
from ce_keras.files import replacing, sweep

logger = logging.getLogger("ce_keras")


class Checkpoints:
    """The last few states of a run, in files of their own.

    A state is the values of variables, in a fixed order, and a few plain values. Files are written
    under another name and moved into place; each is a ZIP archive, whose checksums tell a damaged
    one.

    Args:
        folder: where they are.
        variables: whose values are kept.
        keep: how many files.
    """

    def __init__(self, folder: Path, variables: Sequence[Any], keep: int = 3) -> None:
        self._folder = folder
        self._variables = list(variables)
        self._keep = keep

    def save(self, step: int, content: dict[str, Any]) -> bool:
        """Write the state at a step; older files are removed once it is there.

        Returns:
            Whether it was written. What stands in the way, such as a full disk, is logged, and
            earlier files are left alone.
        """
        arrays: dict[str, Any] = {
            f"variable_{i}": np.asarray(v) for i, v in enumerate(self._variables)
        }
        try:
            with replacing(self._folder / f"step-{step:09d}.npz") as part:
                np.savez(part, content=json.dumps(content), **arrays)
        except OSError as error:
            logger.warning("step %d: no checkpoint, and the run goes on: %s", step, error)
            return False
        for old in self._files()[: -self._keep]:
            old.unlink(missing_ok=True)
        return True

    def restore(self) -> dict[str, Any] | None:
        """Give the variables the values of the last good file, and return its plain values.

        Only a whole state is good: where to go on, and an array for every variable.

        A damaged file is skipped, with a warning. `None` where there is no good one.

        Raises:
            ValueError: for a file of another model.
        """
        for path in reversed(self._files()):
            try:
                content, arrays = _read(path)
            # Whatever a damaged file makes its readers raise: NumPy's, ZIP's, JSON's own errors.
            except Exception as error:
                logger.warning("%s is damaged, and skipped: %s", path, error)
                continue
            if [a.shape for a in arrays] != [tuple(v.shape) for v in self._variables]:
                raise ValueError(f"{path}: is of another model; name another folder")
            for variable, array in zip(self._variables, arrays, strict=True):
                variable.assign(array)
            return content
        return None

    def sweep(self) -> None:
        """Remove what a killed process has left half written."""
        sweep(self._folder / "step-*.npz")

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.npz"))


def _read(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return a state's plain values and its arrays.

    Raises:
        Exception: of any kind, for a file that is damaged; ValueError for one that holds something
            else.
    """
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        content = json.loads(str(file["content"]))
        arrays = [file[f"variable_{i}"] for i in range(len(file.files) - 1)]
    kinds: dict[str, Any] = {
        "epoch": int,
        "step": int,
        "loss": (float, type(None)),
        "history": list,
    }
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name, ...), kind) for name, kind in kinds.items()
    ):
        raise ValueError(f"it is no state of a run: {brief(content)}")
    return content, arrays
