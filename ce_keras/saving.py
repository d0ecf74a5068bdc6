"""Loading of `.keras` files, with an error that names the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras

import ce_keras.layers  # noqa: F401 - Registers the classes that the file may name.
from ce_keras.checks import file_path, shortened


def load_model(path: str | Path) -> keras.Model:
    """Return the model of a `.keras` file.

    Raises:
        ValueError: if there is no such file, it is damaged or something else, or it has layers
            that are not registered with Keras.
    """
    path = file_path("model", path)
    if not path.is_file():
        raise ValueError(f"model: there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"model: {path} is not a .keras file, or is cut off")
    try:
        return keras.models.load_model(path)
    except Exception as error:  # Keras raises many types, depending on the file's content.
        raise ValueError(f"model: {path} cannot be loaded: {shortened(str(error), 400)}") from error
