"""An array that is filled block by block: in memory, or in a file that survives a kill."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ce_keras import files

Filled = tuple[np.ndarray, set[int], Callable[[int], None]]


@contextlib.contextmanager
def growing(
    path: str | Path | None, shape: tuple[int, ...], fingerprint: Any, dtype: Any = np.float32
) -> Iterator[Filled]:
    """An array to fill, the blocks of it that are filled already, and how to say that one is.

    Args:
        path: a `.npy` file, whole once the block ends; `None` for an array in memory.
        shape: of the array.
        fingerprint: what the content depends on, for JSON: an array begun for something else is
            not gone on with.
        dtype: of the array.

    Raises:
        ValueError: for a path that does not end in `.npy`, or one begun for something else.
    """
    done: set[int] = set()
    if path is None:
        yield np.empty(shape, dtype), done, done.add
        return
    path = Path(path)
    if path.suffix != ".npy":
        raise ValueError(f"out: got {str(path)!r}; it must end in .npy")
    part, progress = (path.with_name(f".{path.stem}.{end}") for end in ("part.npy", "json"))
    if part.exists() and progress.exists():
        begun = json.loads(progress.read_text())
        if begun["of"] != fingerprint:
            raise ValueError(
                f"out: {part} was begun with another model, weights, inputs or arguments; delete "
                f"it and {progress.name}, or give another file"
            )
        done = set(begun["done"])
        array = np.lib.format.open_memmap(part, mode="r+")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)

    def keep(block: int) -> None:
        array.flush()
        done.add(block)
        files.write_json(progress, {"of": fingerprint, "done": sorted(done)})

    yield array, done, keep
    part.replace(path)
    progress.unlink(missing_ok=True)
