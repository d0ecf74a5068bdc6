"""Long computations that go on where a killed process stopped: finished results, and large arrays.

A JSON file holds the results that are finished and the key of what they belong to. Results of
anything else are refused, not mixed with new ones.
"""

from __future__ import annotations

import contextlib
import glob
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ce_keras import files
from ce_keras.checks import brief, file_path


class ResumableResults:
    """Named results of a long computation, kept in a JSON file as they are finished.

    Args:
        argument: the caller's argument that names the file, for messages.
        path: of the file; `None` keeps the results in memory only.
        key: everything that the results depend on, as plain data.
        other: what results with another key belong to, for messages: "another fit".
        is_void: called with results of any key; true where they are to be started anew.

    Attributes:
        results: the finished results, by name.

    Raises:
        ValueError: if the file is damaged, or holds results with another key.

    >>> results = ResumableResults("out", None, key={"seed": 0}, other="another fit")
    >>> results.store("width 10", 1.5)
    >>> results.results
    {'width 10': 1.5}
    """

    def __init__(
        self,
        argument: str,
        path: Path | None,
        key: Any,
        other: str,
        is_void: Callable[[dict[str, Any]], bool] = lambda _: False,
    ) -> None:
        self._path, self._key = path, files.plain(key)
        self.results: dict[str, Any] = {}
        self._begun, self._earlier = time.perf_counter(), 0.0
        if path is None or not path.exists():
            return
        try:
            content = files.read_json(path, dict)
        except (ValueError, OSError) as error:
            raise ValueError(f"{argument}: {error}") from None
        results = content.get("results", {})
        if is_void(results):
            return
        if content.get("key") != self._key:
            raise ValueError(
                f"{argument}: {path} was begun with {other}; delete it, or give another file"
            )
        self.results, self._earlier = results, content.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """The time spent until now, in this process and in those that were stopped."""
        return self._earlier + time.perf_counter() - self._begun

    def store(self, name: str, result: Any) -> None:
        """Keep a finished result, in the file too."""
        self.results[name] = files.plain(result)
        if self._path is not None:
            content = {"key": self._key, "seconds": self.seconds, "results": self.results}
            files.write_json(self._path, content)

    def remove(self) -> None:
        """Remove the file: the whole computation is finished and kept elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


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
    """Give an array to fill, in memory or in a file; a killed process' array is gone on with.

    The unfinished array lies beside `path` under another name, `.NAME.part-ID.npy`, and
    `.NAME.progress.json` lists its finished blocks. It takes its place when the `with` block ends.

    Args:
        argument: the caller's argument that names the file, for messages.
        path: a `.npy` file; `None` for an array in memory.
        shape: of the array.
        dtype: of the array.
        key: everything that the content depends on, as plain data.
        other: what an array with another key belongs to, for messages.

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
        progress = ResumableResults(argument, progress_path, key, other, part_is_gone)
        if progress.results:
            part = path.with_name(progress.results["array"])
            array = np.lib.format.open_memmap(part, mode="r+")
        else:
            for abandoned in path.parent.glob(
                f".{glob.escape(path.stem)}.part-{32 * '[a-f0-9]'}.npy"
            ):
                abandoned.unlink()
            part = path.with_name(f".{path.stem}.part-{uuid.uuid4().hex}.npy")
            array = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape)
            progress.store("array", part.name)
        finished = set(progress.results.get("blocks", ()))

        def finish(block: int) -> None:
            array.flush()
            finished.add(block)
            progress.store("blocks", sorted(finished))

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
