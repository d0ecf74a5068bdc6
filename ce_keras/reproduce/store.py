"""Store of a long measurement: finished points are kept in a file, and a later call resumes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ce_keras import files


class Points:
    """Finished points of a measurement, written to a file one by one.

    Args:
        path: the file; `None` keeps the points in memory only.
        key: settings of the measurement: a file of any other is refused.

    Raises:
        ValueError: if the file has points of another measurement.

    >>> points = Points()
    >>> points("a", max, 1, 2), points("a", max, 3, 4)  # The second is not measured again.
    (2, 2)
    """

    def __init__(self, path: Path | None = None, key: Any = None) -> None:
        self._path, self._key = path, files.plain(key)
        self._done: dict[str, Any] = {}
        self._begun, self._before = time.perf_counter(), 0.0
        if path is not None and path.exists():
            content = files.read_json(path, dict)
            if content.get("of") != self._key:
                raise ValueError(
                    f"out: {path} was begun with other settings, {content.get('of')}; delete it, "
                    "or give another folder"
                )
            self._done, self._before = content["points"], content["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds spent so far, in this process and in earlier ones."""
        return self._before + time.perf_counter() - self._begun

    def __call__(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """Return the point of a name; call `measure(*arguments)` if it is not there yet."""
        if name not in self._done:
            self._done[name] = files.plain(measure(*arguments))
            if self._path is not None:
                content = {"of": self._key, "seconds": self.seconds, "points": self._done}
                files.write_json(self._path, content)
        return self._done[name]

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """Give a folder for files of the points: beside the store, or a temporary one."""
        if self._path is not None:
            yield self._path.with_suffix("")
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def end(self) -> None:
        """Remove the file and the folder, once the whole measurement is kept elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            shutil.rmtree(self._path.with_suffix(""), ignore_errors=True)
