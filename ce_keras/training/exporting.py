"""Export of a finished run's model as Keras, SavedModel, LiteRT or ONNX file."""

from __future__ import annotations

import contextlib
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras

from ce_keras.checks import file_path, one_of
from ce_keras.saving import load_model
from ce_keras.training.records import check_finished


def export(folder: str | Path, form: str, to: str | Path | None = None) -> Path:
    """Write the model of a finished run for use elsewhere.

    Args:
        folder: of the run.
        form: `"keras"`, `"saved_model"`, `"litert"` or `"onnx"`.
        to: a file (for a SavedModel, a folder) to write, or an existing folder to write `model`
            with the format's suffix into; the run's own if not given.

    Returns:
        The path that was written. The run's own `model.keras` is left as it is.

    Raises:
        ValueError: for a folder without a finished run, an unknown form, a path that is another
            run's or taken by anything but an earlier export, or a form that needs a package which
            is not installed.
    """
    folder = file_path("folder", folder)
    if to is not None:
        to = file_path("to", to)
    kind = _FORMATS[one_of("format", form, tuple(_FORMATS))]
    check_finished(folder)
    to = _free_path(Path(folder if to is None else to), form, kind)
    _check_no_other_run(to, folder)
    if to.exists() and to.samefile(folder / "model.keras"):
        return to
    model = load_model(folder / "model.keras")
    # Keras exports only models that have been called.
    model(keras.ops.zeros((1, *model.input_shape[1:])))
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.stem}-") as scratch:
        part = Path(scratch) / f"model{kind.suffix}"  # The suffix is how Keras knows the format.
        try:
            kind.write(model, part)
        except ImportError as error:
            raise ValueError(
                f"format: {form} needs a package that is not installed: {error}"
            ) from None
        _replace(part, to, Path(scratch) / "earlier")
    return to


def _replace(part: Path, to: Path, aside: Path) -> None:
    """Move `part` to `to`; if that fails, what was at `to` stays there."""
    if not to.is_dir():
        part.replace(to)
        return
    try:
        to.rename(aside)  # A rename does not replace a folder.
        part.replace(to)
    except BaseException:
        if not to.exists():
            with contextlib.suppress(FileNotFoundError):  # It had not been moved yet.
                aside.rename(to)
        raise


def _check_no_other_run(to: Path, folder: Path) -> None:
    """Check that a path is not in the folder of another run, whose model has the same name."""
    parent = to.parent.resolve()
    for each in (parent, *parent.parents):
        if not (each / "recipe.json").exists():
            continue
        if each.samefile(folder):
            return
        raise ValueError(f"to: {to} is in {each}, the folder of another run; name another place")


def _free_path(to: Path, form: str, kind: _Format) -> Path:
    """Return the path to write, at which there is nothing or an earlier export of the form.

    Raises:
        ValueError: if there is something else.
    """
    if to.is_dir() and not kind.recognised(to):
        to = to / f"model{kind.suffix}"
    elif to.suffix != kind.suffix and kind.suffix:
        raise ValueError(f"to: got {str(to)!r}; it must end in {kind.suffix}, or be a folder")
    if to.exists() and not kind.recognised(to):
        raise ValueError(f"to: {to} is there, and no earlier export ({form}); name another place")
    return to


class _Format(NamedTuple):
    """A format: its suffix, its writer, and the test that recognises an earlier export."""

    suffix: str
    write: Callable[[Any, Path], Any]
    recognised: Callable[[Path], bool]


def _exporter(form: str) -> Callable[[Any, Path], Any]:
    return lambda model, path: model.export(path, form, verbose=False)


# All paths in the folder of a SavedModel; folders end in a slash.
_IN_SAVED_MODEL = re.compile(
    r"saved_model\.pb|fingerprint\.pb|assets/|variables/"
    r"|variables/variables\.(index|data-\d+-of-\d+)"
)


def _is_saved_model(path: Path) -> bool:
    names = [each.relative_to(path).as_posix() + "/" * each.is_dir() for each in path.rglob("*")]
    # Its first fields: the schema's version, which is 1, and the model.
    whole = _begins(path / "saved_model.pb", b"\x08\x01\x12")
    return whole and all(map(_IN_SAVED_MODEL.fullmatch, names))


def _is_keras_file(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) == {"config.json", "metadata.json", "model.weights.h5"}
    except (OSError, zipfile.BadZipFile):
        return False


def _begins(path: Path, content: bytes, at: int = 0) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(at + len(content))[at:] == content


_FORMATS = {
    "keras": _Format(".keras", lambda model, path: model.save(path), _is_keras_file),
    "saved_model": _Format("", _exporter("tf_saved_model"), _is_saved_model),
    "litert": _Format(".tflite", _exporter("litert"), lambda path: _begins(path, b"TFL3", 4)),
    # Its first fields: a version, and what wrote it.
    "onnx": _Format(".onnx", _exporter("onnx"), lambda path: _begins(path, b"\x12\x07tf2onnx", 2)),
}
