"""Weights of networks: save and load files, and find published ones.

A `.safetensors` file written here has Keras' names: `conv1_conv/kernel`. No pickle is read.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ce_keras import files
from ce_keras.checks import boolean, brief, file_path, keras_model, text
from ce_keras.zoo.weight_files import check_file, read_state

#: Folder of the published weights and their index.
FOLDER = Path(__file__).parent / "trained"

_SUFFIXES = (".weights.h5", ".safetensors")


def published_weights(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the published weights, by model and data set.

    Args:
        name: name of a model; all models if not given.

    Returns:
        For each `"model/data"`: file, its SHA-256, names of classes, mean and standard
        deviation of the images, test error in percent, and the recipe and seed of the training.

    >>> sorted(published_weights("resnext11_7x7d"))
    ['resnext11_7x7d/fashion_mnist']
    """
    if name is not None:
        text("name", name)
    index = files.read_json(FOLDER / "index.json")
    return {key: value for key, value in index.items() if name in (None, key.partition("/")[0])}


def is_address(weights: Any) -> bool:
    """Return whether weights are meant to come from the Hub.

    >>> is_address("hf://timm/resnet50.tv_in1k"), is_address("resnet50.safetensors")
    (True, False)
    """
    return isinstance(weights, str) and weights.startswith("hf:")


def find_weights(weights: str | Path | None, name: str) -> Path | None:
    """Return the file that a network's argument `weights` means.

    Args:
        weights: a path, the data set of published weights, or `None`.
        name: name of the model.

    Raises:
        ValueError: if there is no such file, or its hash is not the published one.
    """
    if weights is None:
        return None
    own = published_weights(name)
    entry = own.get(f"{name}/{weights}") if isinstance(weights, str) else None
    if entry is not None:
        return _fetched(entry)
    if is_address(weights):
        raise ValueError(f"weights: got {brief(weights)}; {name} has none on the Hugging Face Hub")
    path = file_path("weights", weights)
    if weights == "imagenet":
        raise ValueError(
            f"weights: there are none of {name!r} called 'imagenet'. The Hugging Face Hub has "
            "ResNets' and ResNeXts': pip install 'ce-keras[hub]', then resnext50(mode='resnext', "
            "weights='hf://timm/resnext50_32x4d.tv_in1k'), or resnet50(weights="
            "'hf://timm/resnet50.tv_in1k'). For a file of PyTorch's, build with weights=None, then "
            "ce_keras.zoo.from_torch(model, 'resnext50_32x4d.pth'); those of a network of "
            "keras.applications go by ce_keras.zoo.from_applications"
        )
    if not path.is_file() or not path.name.endswith(_SUFFIXES):
        names = [key.partition("/")[2] for key in own]
        raise ValueError(
            f"weights: got {brief(str(weights))}; it must be None, a file that exists "
            f"({' or '.join(_SUFFIXES)}), or a name of published weights: {name} has "
            f"{', '.join(names) or 'none'}"
        )
    return path


def _fetched(entry: Mapping[str, Any]) -> Path:
    """Return a published file, of the package or downloaded once, after checking its hash."""
    if "url" in entry:
        options = {"file_hash": entry["sha256"], "hash_algorithm": "sha256"}
        return Path(keras.utils.get_file(entry["file"], entry["url"], **options))
    path = FOLDER / entry["file"]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry["sha256"]:
        raise ValueError(
            f"weights: {path} has the SHA-256 {found}, but was published with {entry['sha256']}; "
            "install the package again"
        )
    return path


def load_weights(model: keras.Model, path: str | Path, partial: bool = False) -> None:
    """Load the weights of a file into a model, all or none.

    Args:
        model: a built model.
        path: a `.weights.h5` or `.safetensors` file.
        partial: whether the file may have more weights than the model, as of a classifier.

    Raises:
        ValueError: for weights that are missing, or of other shapes.
    """
    keras_model("model", model)
    boolean("partial", partial)
    path = file_path("path", path)
    check_file("weights", path)
    if path.suffix != ".safetensors":
        # Keras ignores additional weights in the file, and may only warn about missing ones, which
        # would leave layers with random weights.
        before = model.get_weights()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            try:
                model.load_weights(path)
            # A damaged file, or one of another network, raises errors of many types.
            except Exception as error:
                model.set_weights(before)  # Keras may have loaded some.
                raise ValueError(f"weights: {path} does not fit: {error}") from error
        if wrong := _not_finite({v.path: np.asarray(v) for v in model.weights}):
            model.set_weights(before)
            raise ValueError(f"weights: {path}: {wrong}")
        return
    assign(model, read_state("weights", path), f"weights: {path}", partial)


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Save a model's weights as `.safetensors`.

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="one")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(model, Path(folder) / "a.safetensors")
    ...     load_weights(model, Path(folder) / "a.safetensors")
    """
    keras_model("model", model)
    path = file_path("path", path)
    from safetensors.numpy import save_file

    with files.replacing(path) as part:
        save_file({name: np.asarray(value) for name, value in named(model).items()}, part)


def named(model: keras.Model) -> dict[str, Any]:
    """Return a model's variables, by their names in files.

    Raises:
        ValueError: if two variables have the same name.
    """
    found = {variable.path: variable for variable in model.weights}
    if len(found) < len(model.weights):
        raise ValueError(
            f"model: {model.name} has {len(model.weights)} variables of {len(found)} names; give "
            "its layers names of their own, or save it as .keras"
        )
    return found


def assign(
    model: keras.Model, arrays: Mapping[str, np.ndarray], where: str, partial: bool = False
) -> None:
    """Assign arrays to a model's variables of the same names, all or none.

    Raises:
        ValueError: for names that are missing or too many, or other shapes; the message begins
            with `where`.
    """
    variables = named(model)
    missing = sorted(set(variables) - set(arrays))
    more = [] if partial else sorted(set(arrays) - set(variables))
    for what, names in (("lacks", missing), ("has more:", more)):
        if names:
            raise ValueError(f"{where}: {what} {_few(names)}; is it of another network?")
    if wrong := _not_finite({name: arrays[name] for name in variables}):
        raise ValueError(f"{where}: {wrong}")
    for name, variable in variables.items():
        found, wanted = arrays[name].shape, tuple(variable.shape)
        if found != wanted:
            hint = ""
            if name.startswith("predictions/"):
                hint = f": give classes={found[-1]}, or include_top=False"
            raise ValueError(f"{where}: {name} has shape {found}, the network {wanted}{hint}")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return an error message for the first array that is not of finite real numbers."""
    for name, array in arrays.items():
        if array.dtype.kind in "biucOSU":
            return f"{name} has numbers of type {array.dtype}; weights are real numbers"
        if not np.isfinite(array.astype(np.float32)).all():
            return f"{name} has numbers that are infinite or NaN"
    return None


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
