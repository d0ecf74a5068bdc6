"""Progress bars on a terminal; a line now and then where the output is a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any, TextIO

# Seconds between two lines where nobody watches.
_BETWEEN_LINES = 30.0


class _Lines:
    """A stream on which every state of a bar is a line of its own, instead of one redrawn."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write what a bar shows, without the characters that move a cursor."""
        text = text.replace("\r", "").replace("\x1b[A", "").strip()
        if text:
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        """Write out what is buffered."""
        self._stream.flush()


def progress(*arguments: Any, **options: Any) -> Any:
    """Return a `tqdm` bar, on standard error.

    Args:
        arguments: of `tqdm`.
        options: of `tqdm`.
    """
    from tqdm.auto import tqdm

    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        options = {
            "file": _Lines(sys.stderr),
            "mininterval": _BETWEEN_LINES,
            "ncols": 100,
            **options,
            # The last state is said, unless it comes sooner than the first line would.
            "leave": options.get("leave", True),
        }
    return tqdm(*arguments, **options)
