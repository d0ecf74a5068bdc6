"""An array that is filled block by block: in memory, or in a file that survives a kill."""

from __future__ import annotations

import contextlib
import glob
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ce_keras import files
from ce_keras.checks import brief, file_path

Filled = tuple[np.ndarray, set[int], Callable[[int], None]]


@contextlib.contextmanager
def growing(
    path: str | Path | None, shape: tuple[int, ...], fingerprint: Any, dtype: Any = np.float32
) -> Iterator[Filled]:
    """Give an array to fill, the blocks that are filled already, and a function to mark one filled.

    While it grows, the array lies beside `path` in a file of a name of its own, and a JSON file
    says which blocks of that very file are filled.

    Args:
        path: a `.npy` file, whole once the block ends; `None` for an array in memory.
        shape: of the array.
        fingerprint: what the content depends on, for JSON: an array begun for something else is
            not gone on with.
        dtype: of the array.

    Raises:
        ValueError: for a path that does not end in `.npy`, one begun for something else, or one
            that another process is filling.
    """
    if path is None:
        done: set[int] = set()
        yield np.empty(shape, dtype), done, done.add
        return
    path = checked_array_path("out", path)
    with files.exclusive("out", path):
        files.sweep(_progress(path))
        part, done = _begun(path, fingerprint)
        if part is None:
            for left in path.parent.glob(_parts(path)):
                left.unlink()
            part = path.with_name(f".{path.stem}.part-{uuid.uuid4().hex}.npy")
            array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
        else:
            array = np.lib.format.open_memmap(part, mode="r+")
        progress = _progress(path)

        def keep(block: int) -> None:
            array.flush()
            done.add(block)
            files.write_json(progress, {"of": fingerprint, "in": part.name, "done": sorted(done)})

        yield array, done, keep
        part.replace(path)
        progress.unlink(missing_ok=True)


def checked_array_path(argument: str, value: Any) -> Path:
    """Return a path that an array can be written to; of a link, what it points to.

    Raises:
        ValueError: unless it is the path of a file, ends in `.npy`, and leaves room for the names
            of what lies beside it.
    """
    path = file_path(argument, value).resolve()
    if path.suffix != ".npy":
        raise ValueError(f"{argument}: got {brief(str(value))}; it must end in .npy")
    if path.is_dir():
        raise ValueError(f"{argument}: got {brief(str(value))}; it is a folder")
    file_path(argument, path.with_name(f".{path.stem}.part-{'0' * 32}.npy"))
    return path


def _parts(path: Path) -> str:
    """Return the pattern of the names that an unfinished array can have."""
    return f".{glob.escape(path.stem)}.part-{'[a-f0-9]' * 32}.npy"


def _progress(path: Path) -> Path:
    return path.with_name(f".{path.stem}.progress.json")


def _begun(path: Path, fingerprint: Any) -> tuple[Path | None, set[int]]:
    """Return the file of an array that was begun, if there is one, and its blocks."""
    progress = _progress(path)
    if not progress.exists():
        return None, set()
    begun = files.read_json(progress, dict)
    part = path.with_name(str(begun.get("in")))
    if not part.is_file():  # It was finished, and then the process was killed.
        return None, set()
    if begun.get("of") != fingerprint:
        raise ValueError(
            f"out: {part} was begun with another model, weights, inputs or arguments; delete "
            f"it and {progress.name}, or give another file"
        )
    return part, set(begun.get("done", ()))
