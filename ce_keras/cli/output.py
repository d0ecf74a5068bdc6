"""Parts that commands share: output, options that name files, loading of Keras."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ce_keras.checks import brief, file_path


def show(options: argparse.Namespace, content: Any, text: str) -> None:
    """Print the result of a command, as JSON for `--json`."""
    print(json.dumps(content, indent=2) if options.json else text)


def table(rows: list[list[str]], left: int) -> str:
    """Return rows as aligned columns, of which the first `left` are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def file_to_write(text: str) -> Path:
    """Return the value of an option that names a file to write.

    Raises:
        argparse.ArgumentTypeError: for a folder, or a path that cannot be written.
    """
    path = _path_to_write(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{brief(text)} is a folder; name a file")
    return path


def picture_to_write(text: str) -> Path:
    """Return the value of an option that names a picture to draw.

    Raises:
        argparse.ArgumentTypeError: for another suffix, or a path that cannot be written.
    """
    path = file_to_write(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{brief(text)} must end in .png, .svg or .pdf")
    return path


def folder_to_write(text: str) -> Path:
    """Return the value of an option that names a folder to write into.

    Raises:
        argparse.ArgumentTypeError: for a file, or a path that cannot be written.
    """
    path = _path_to_write(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{brief(text)} is a file; name a folder")
    return path


def _path_to_write(text: str) -> Path:
    try:
        return file_path("path", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def set_debug(debug: bool) -> None:
    """Set whether to show everything that libraries write to standard error."""
    global _debug  # noqa: PLW0603 - A setting of the process, as the streams are.
    _debug = debug
    if not debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


_debug = False


def load_zoo() -> Any:
    """Import the zoo, without TensorFlow's messages."""
    start_keras()
    from ce_keras import zoo

    return zoo


def start_keras() -> None:
    """Import Keras and its backend, and find the devices, without their messages.

    Not for training on several machines, whose strategy must come before any tensor.
    """
    with muted_stderr():
        import keras

        keras.ops.zeros(1)
        # Keras loads TensorFlow, where it is installed, to write a configuration: on any backend.
        keras.dtype_policies.serialize(keras.dtype_policies.get("float32"))


@contextlib.contextmanager
def muted_stderr() -> Iterator[None]:
    """Hide what is written to standard error, by native code too.

    It is shown if the block raises an error that its message does not explain.
    """
    if _debug:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (ValueError, KeyboardInterrupt):
            raise
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
