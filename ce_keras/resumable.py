"""Long computations that resume where a stopped process was: named results, and large arrays.

A JSON file holds what is finished and the key of what it belongs to. Results with another key are
refused, not mixed with new ones.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ce_keras import files
from ce_keras.checks import brief, file_path

logger = logging.getLogger("ce_keras")


class ResumableResults:
    """Results by name, written to a JSON file one by one, so that a stopped run can be resumed.

    Args:
        path: the file; `None` keeps the results in memory only.
        key: everything that the results depend on; a file with another key is refused.
        argument: the argument that names the file, for messages.
        other: what results with another key were begun with, for messages.
        is_void: called with the file's results; where it returns true, they are ignored whatever
            their key.

    Attributes:
        path: the file.
        done: the results so far, by name.

    Raises:
        ValueError: if the file is damaged, or has results of another key.

    >>> results = ResumableResults(None, key={"seed": 0})
    >>> results.keep("first", (1, 2))
    >>> results.done
    {'first': [1, 2]}
    """

    def __init__(
        self,
        path: str | Path | None,
        key: Any,
        argument: str = "checkpoint",
        other: str = "other arguments",
        is_void: Callable[[dict[str, Any]], bool] = lambda _: False,
    ) -> None:
        self.path = None if path is None else Path(path)
        self._key = files.plain(key)
        self.done: dict[str, Any] = {}
        self._start = time.perf_counter()
        if self.path is None or not self.path.exists():
            return
        try:
            content = files.read_json(self.path, dict)
        except (ValueError, OSError) as error:
            raise ValueError(f"{argument}: {error}") from None
        done = content.get("points", {})
        if is_void(done):
            return
        if content.get("of") != self._key:
            raise ValueError(
                f"{argument}: {path} was begun with {other}; delete it, or give another file"
            )
        self.done = done
        self._start -= content.get("seconds", 0.0)
        logger.info("%s: %d results are done", path, len(self.done))

    @property
    def seconds(self) -> float:
        """Time spent, in this process and in those that were stopped."""
        return time.perf_counter() - self._start

    def keep(self, name: str, result: Any) -> None:
        """Add a result, and write the file."""
        self.done[name] = files.plain(result)
        if self.path is not None:
            content = {"of": self._key, "seconds": self.seconds, "points": self.done}
            files.write_json(self.path, content)

    def remove(self) -> None:
        """Remove the file: the whole computation is finished and stored elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class PartialArray(NamedTuple):
    """An array that is filled block by block.

    Attributes:
        array: the array, memory-mapped where it lies in a file.
        finished: the numbers of the blocks that are filled.
        finish: called with the number of a block once that is filled.
    """

    array: np.ndarray
    finished: set[int]
    finish: Callable[[int], None]


@contextlib.contextmanager
def resumable_array(
    argument: str, path: str | Path | None, shape: tuple[int, ...], dtype: Any, key: Any, other: str
) -> Iterator[PartialArray]:
    """Yield an array to fill, in memory or in a file; the array of a stopped process is resumed.

    The unfinished array lies beside `path` under another name, `.NAME.part-ID.npy`, and
    `.NAME.progress.json` lists its finished blocks. It takes its place when the `with` block ends.

    Args:
        argument: the caller's argument that names the file, for messages.
        path: a `.npy` file; `None` for an array in memory.
        shape: of the array.
        dtype: of the array.
        key: everything that the content depends on, as plain data.
        other: what an array with another key was begun with, for messages.

    Raises:
        ValueError: for a path that does not end in `.npy`, an unfinished array with another key,
            or one that another process is filling.
    """
    if path is None:
        finished: set[int] = set()
        yield PartialArray(np.empty(shape, dtype), finished, finished.add)
        return
    path = checked_array_path(argument, path)
    progress_path = path.with_name(f".{path.stem}.progress.json")

    def part_is_gone(results: dict[str, Any]) -> bool:
        # The array was finished, and the process killed before it removed the progress.
        return not path.with_name(str(results.get("array"))).is_file()

    with files.exclusive(argument, path):
        files.sweep(progress_path)
        progress = ResumableResults(progress_path, key, argument, other, part_is_gone)
        if progress.done:
            part = path.with_name(progress.done["array"])
            array = np.lib.format.open_memmap(part, mode="r+")
        else:
            abandoned = f".{glob.escape(path.stem)}.part-{32 * '[a-f0-9]'}.npy"
            for each in path.parent.glob(abandoned):
                each.unlink()
            part = path.with_name(f".{path.stem}.part-{uuid.uuid4().hex}.npy")
            array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
            progress.keep("array", part.name)
        finished = set(progress.done.get("blocks", ()))

        def finish(block: int) -> None:
            array.flush()
            finished.add(block)
            progress.keep("blocks", sorted(finished))

        yield PartialArray(array, finished, finish)
        part.replace(path)
        progress.remove()


def checked_array_path(argument: str, value: Any) -> Path:
    """Return a path that an array can be written to; of a link, the path that it points to.

    Raises:
        ValueError: unless it is the path of a file, ends in `.npy`, and leaves room for the longer
            names of the files beside it.
    """
    path = file_path(argument, value).resolve()
    if path.suffix != ".npy":
        raise ValueError(f"{argument}: got {brief(str(value))}; it must end in .npy")
    if path.is_dir():
        raise ValueError(f"{argument}: got {brief(str(value))}; it is a folder")
    file_path(argument, path.with_name(f".{path.stem}.part-{'0' * 32}.npy"))
    return path
