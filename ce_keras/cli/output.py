"""What commands share: what they print, and how they load the zoo."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any


def show(options: argparse.Namespace, content: Any, text: str) -> None:
    """Print a command's answer: as JSON where `--json` asks for it."""
    print(json.dumps(content, indent=2) if options.json else text)


def table(rows: list[list[str]], left: int) -> str:
    """Columns padded to their widest cell; the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def load_zoo() -> Any:
    """The zoo, without the page of messages TensorFlow writes while it loads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with muted_stderr():
        from ce_keras import zoo

        zoo.resnext11()  # Devices are found, and not found, at the first tensor.
    return zoo


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Hold back what is written to standard error, native code included; show it on failure."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
