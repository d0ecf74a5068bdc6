"""Files written atomically: under a temporary name, then moved into place."""

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
except ImportError:  # Windows has no such locks.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("ce_keras")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends, the file replaces `path`.

    The temporary file lies beside `path` and has its suffix. If the block raises, it is removed
    and `path` is left as it was.

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
        # Temporary files can be read by their owner only; the finished one gets the usual mode.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # A full disk is often reported without the file's name.
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextlib.contextmanager
def exclusive(argument: str, path: str | Path) -> Iterator[None]:
    """Hold an exclusive lock on a path, against other processes, during the block.

    A file beside `path` is locked by the operating system, which releases it when a process dies.
    On file systems without locks, and on Windows, nothing is locked.

    Args:
        argument: the argument that names the path, for the message.
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
                stack.callback(lock.unlink, missing_ok=True)  # Runs before the handle is closed.
                break
            os.close(handle)  # The previous holder has removed the file meanwhile: try again.
        yield


def check_other(argument: str, path: Path, source: Path) -> None:
    """Raise `ValueError` for a file to write that is the one that is read."""
    if path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{argument}: {path} is the model that is read; name another file")


def sweep(path: str | Path) -> None:
    """Remove the temporary files that killed calls of `replacing(path)` have left.

    Args:
        path: of a file; its name may be a pattern, such as `step-*.npz`.
    """
    path = Path(path)
    # `tempfile.mkstemp` puts eight random characters before the suffix.
    for part in path.parent.glob(f".{path.stem}-{'[a-z0-9_]' * 8}{path.suffix}"):
        part.unlink(missing_ok=True)


def keras_home() -> Path:
    """Return the folder of Keras' configuration and downloads; `KERAS_HOME` names another."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def read_json(path: str | Path, kind: type = object) -> Any:
    """Return the content of a JSON file, of the type `kind`.

    Raises:
        ValueError: if the file is damaged, or holds another type; the message names the file.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:  # Bytes that are no text raise ValueError too.
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} is damaged: it holds a {type(content).__name__}")
    return content


def plain(content: Any) -> Any:
    """Return `content` as JSON would restore it: tuples become lists."""
    return json.loads(json.dumps(content))


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
