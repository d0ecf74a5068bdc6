"""The images that a calibration reads: arrays, or batches of a data set, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from ce_keras.checks import brief
from ce_keras.layers.functional import runs_its_graph
from ce_keras.variance.samplers import generator

#: Images that are read at most; one in five is held out.
MOST = 5_000
LEAST = 10
_BATCH = 50


class Batches(NamedTuple):
    """Inputs of a model, in batches.

    Attributes:
        inputs: for every batch, an array for each of the model's inputs.
        fit: the numbers of the batches that weights are fitted to.
        held_out: the numbers of the others.
    """

    inputs: list[list[np.ndarray]]
    fit: range
    held_out: range

    def count(self, numbers: Iterable[int]) -> int:
        """Return the number of images in batches."""
        return sum(len(self.inputs[number][0]) for number in numbers)


def read_images(model: keras.Model, data: Any, seed: int | None) -> Batches:
    """Return the images in `data`, a fifth of them held out.

    Args:
        model: whose inputs they are.
        data: an array for each input (one array, a list or a dictionary by the inputs' names); or
            batches of such, or of tuples that begin with such, as data sets for training give. A
            batch of a PyTorch loader is a list that does.
        seed: of which images are held out, and of which are read where an array has more than
            `MOST`. Of batches, the first are read.

    Raises:
        ValueError: for data of other shapes, that are not numbers, or too few; or a model with a
            `call` of its own.
    """
    rng = generator(seed)
    _check(model, data)
    arrays = _arrays(model, data)
    count = len(arrays[0]) if arrays is not None else 0
    if arrays is None:
        arrays = _joined(model, data)
        count = len(arrays[0])
    if count < LEAST:
        raise ValueError(f"data: got {count} images; at least {LEAST} are needed, better 1,000")
    order = rng.permutation(count)[:MOST]
    cut, size = len(order) - len(order) // 5, _BATCH
    if (fixed := model.inputs[0].shape[0]) is not None:
        if count < 2 * fixed:
            raise ValueError(
                f"data: got {count} images; the model's batches have {fixed}, and two are needed"
            )
        size, order = fixed, order[: len(order) // fixed * fixed]
        cut = min(max(cut // size, 1) * size, len(order) - size)
    parts = [
        rows[start : start + size]
        for rows in (order[:cut], order[cut:])
        for start in range(0, len(rows), size)
    ]
    fit = -(-cut // size)
    batches = [[array[np.sort(rows)] for array in arrays] for rows in parts]
    for batch in batches:
        if not all(np.isfinite(array).all() for array in batch):
            raise ValueError("data: some of its numbers are infinite or NaN")
    return Batches(batches, range(fit), range(fit, len(parts)))


def _check(model: keras.Model, data: Any) -> None:
    """Raise for a model that cannot be calibrated, or data with labels."""
    if not runs_its_graph(model):
        raise ValueError(
            f"init: 'calibrated' follows the graph of layers, and {model.name!r} is a "
            f"{type(model).__name__}, whose call is its own; use init='split'"
        )
    if isinstance(data, tuple) and len(data) > 1 == len(model.inputs) and all(map(_is_array, data)):
        raise ValueError(
            f"data: got a tuple of {len(data)} arrays, as of images and their labels; give the "
            "images alone, or batches as a list"
        )


def _arrays(model: keras.Model, data: Any) -> list[np.ndarray] | None:
    """Return an array for each input; `None` for data that come in batches."""
    inputs = model.inputs
    if isinstance(data, Mapping):
        names = [tensor.name for tensor in inputs]
        structure = None if isinstance(model, keras.Sequential) else model.input
        if isinstance(structure, dict) and len(structure) == len(inputs):
            keys = {id(tensor): key for key, tensor in structure.items()}
            own = [keys[id(tensor)] for tensor in inputs]
            names = own if {*own} == {*data} else names
        if sorted(map(str, data)) != sorted(names):
            raise ValueError(f"data: got keys {brief(list(data))}; the model's inputs are {names}")
        found = [data[name] for name in names]
    elif _is_array(data):
        found = [data]
    elif isinstance(data, list | tuple) and len(data) == len(inputs) > 1:
        if not all(map(_is_array, data)):
            return None
        found = list(data)
    else:
        return None
    if len(found) != len(inputs):
        raise ValueError(f"data: got one array; the model has {len(inputs)} inputs")
    arrays = [_checked(each, tensor) for each, tensor in zip(found, inputs, strict=True)]
    if len({len(array) for array in arrays}) > 1:
        lengths = [len(array) for array in arrays]
        raise ValueError(f"data: its arrays have different numbers of images: {lengths}")
    return arrays


def _inputs_of(model: keras.Model, batch: Any) -> Any:
    """Return the inputs in a batch, which labels may follow: in a list, as PyTorch's loaders do."""
    if not isinstance(batch, list | tuple) or not batch:
        return batch
    # A list of arrays may be one for each input.
    is_nested = isinstance(batch[0], list | tuple | Mapping)
    return batch[0] if isinstance(batch, tuple) or is_nested or len(model.inputs) == 1 else batch


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def _checked(value: Any, tensor: Any) -> np.ndarray:
    """Return an array that fits an input of the model."""
    array = keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else np.asarray(value)
    wanted = tuple(tensor.shape[1:])
    fits = array.ndim == len(wanted) + 1 and all(
        side in (None, own) for side, own in zip(wanted, array.shape[1:], strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        raise ValueError(
            f"data: got an array of {array.dtype} of shape {array.shape}; the model's input "
            f"{tensor.name!r} needs numbers of shape (images, {', '.join(map(str, wanted))})"
        )
    return array


def _joined(model: keras.Model, data: Any) -> list[np.ndarray]:
    """Return the first images of a data set that gives batches."""
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise ValueError(
            f"data: got {brief(data)}; it must be an array of images, or batches of them, such as "
            "a tf.data.Dataset"
        )
    parts: list[list[np.ndarray]] = []
    count = 0
    for batch in data:
        arrays = _arrays(model, _inputs_of(model, batch))
        if arrays is None:
            raise ValueError(f"data: got a batch {brief(batch)}; it must be an array of images")
        parts.append(arrays)
        count += len(arrays[0])
        if count >= MOST:
            break
    if not parts:
        raise ValueError(f"data: got no images; at least {LEAST} are needed, better 1,000")
    for column, tensor in zip(zip(*parts, strict=True), model.inputs, strict=True):
        shapes = sorted({array.shape[1:] for array in column})
        if len(shapes) > 1:
            raise ValueError(
                f"data: batches for the input {tensor.name!r} have images of shapes {shapes[0]} "
                f"and {shapes[1]}; calibration needs one size"
            )
    return [np.concatenate(column)[:MOST] for column in zip(*parts, strict=True)]
