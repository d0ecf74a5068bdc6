"""Store of a long measurement: finished points are kept in a file, and a later call resumes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ce_keras.resumable import ResumableResults


class Points(ResumableResults):
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
        super().__init__(path, key, "out", "other settings")

    def __call__(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """Return the point of a name; call `measure(*arguments)` if it is not there yet."""
        if name not in self.done:
            self.keep(name, measure(*arguments))
        return self.done[name]

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """Give a folder for files of the points: beside the store, or a temporary one."""
        if self.path is not None:
            yield self.path.with_suffix("")
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def end(self) -> None:
        """Remove the store and its folder."""
        self.remove()
        if self.path is not None:
            shutil.rmtree(self.path.with_suffix(""), ignore_errors=True)
