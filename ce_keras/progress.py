"""Progress bars on a terminal; a line every half minute where the output is a file or a pipe."""

from __future__ import annotations

import sys
from typing import Any, TextIO


class _Lines:
    """A stream that writes every state of a bar as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a bar without the characters that move a terminal's cursor."""
        text = text.replace("\r", "").replace("\x1b[A", "").strip()
        if text:
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


def progress(*arguments: Any, **options: Any) -> Any:
    """Return a `tqdm` bar on standard error; arguments and options are `tqdm`'s."""
    from tqdm.auto import tqdm

    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        lines = {"file": _Lines(sys.stderr), "mininterval": 30.0, "ncols": 100, "leave": True}
        options = {**lines, **options}
    return tqdm(*arguments, **options)
