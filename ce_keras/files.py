"""Files that are whole or not there: written under another name, then moved into place."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("ce_keras")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; once the block ends well, the file takes `path`'s place.

    The temporary file lies beside `path` and has its suffix. If the block raises, it is removed
    and what was at `path` is left as it was.

    >>> path = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> with replacing(path) as part:
    ...     characters = part.write_text("all or nothing")
    >>> path.read_text()
    'all or nothing'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        # A temporary file is its owner's alone; the finished one has the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # A full disk is often reported without saying which file did not fit.
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextlib.contextmanager
def exclusive(argument: str, path: str | Path) -> Iterator[None]:
    """Keep other processes from what is written at a path, for the time of the block.

    A file beside `path` is locked by the operating system, which lets go of it when a process
    dies. On file systems that have no locks, and on Windows, nothing is locked.

    Args:
        argument: what the path is to the caller, for the message.
        path: of a file, or of a folder.

    Raises:
        ValueError: if another process holds it.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while fcntl is not None:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise ValueError(f"{argument}: {path} is in use by another process") from None
            except OSError as error:
                os.close(handle)
                logger.warning("%s cannot be locked: %s", path, error)
                break
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                stack.callback(os.close, handle)
                stack.callback(lock.unlink, missing_ok=True)  # Before it is let go of.
                break
            os.close(handle)  # Its last holder has removed it meanwhile.
        yield


def sweep(path: str | Path) -> None:
    """Remove what killed calls of `replacing(path)` have left beside the path.

    Args:
        path: of a file; its name may be a pattern, such as `step-*.npz`.
    """
    path = Path(path)
    # As `tempfile.mkstemp` names them: eight characters before the suffix.
    for part in path.parent.glob(f".{path.stem}-{'[a-z0-9_]' * 8}{path.suffix}"):
        part.unlink(missing_ok=True)


def read_json(path: str | Path, kind: type = object) -> Any:
    """Return what `write_json` wrote.

    Args:
        path: of the file.
        kind: of what it must hold: `dict` or `list`.

    Raises:
        ValueError: if the file is damaged, or holds something else; the message names it.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:  # Also of bytes that are no text.
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}")
    return content


def plain(content: Any) -> Any:
    """Return `content` as it comes back from JSON: tuples are lists there."""
    return json.loads(json.dumps(content))


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as readable JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
