"""Preprocessing of images, and names of predicted classes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from ce_keras.checks import brief, one_of, positive_int, real_array, text
from ce_keras.zoo.preprocessing import preprocessing
from ce_keras.zoo.weights import is_address, published_weights

#: Mean and standard deviation of ImageNet's red, green and blue.
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def preprocess_input(x: Any, data_format: str | None = None, *, weights: str | None = None) -> Any:
    """Normalise images as in training.

    Args:
        x: images with values from 0 to 255.
        data_format: `"channels_last"` or `"channels_first"`; Keras' default if not given.
        weights: name of published weights, `"resnext11_7x7d/fashion_mnist"`, whose mean and
            standard deviation are used, or an address of the Hugging Face Hub; ImageNet's, of each
            colour, if not given.

    Raises:
        ValueError: for unknown weights, or, with constants of each colour, images that do not
            have three channels.

    >>> float(preprocess_input(np.full((1, 1, 3), 123.675))[0, 0, 0])
    0.0
    """
    one_of("data_format", data_format, (None, "channels_last", "channels_first"))
    if not hasattr(x, "shape"):
        raise ValueError(f"x: got {brief(x)}; it must be an array or tensor of images")
    if isinstance(x, np.ndarray):
        real_array("x", x)
    if weights is not None and not is_address(weights):
        known = _published(weights)
        mean, std = (np.array(known[key], "float32") for key in ("mean", "deviation"))
        return (x - mean) / std
    axis = -1 if (data_format or keras.config.image_data_format()) == "channels_last" else -3
    if x.shape[axis] != 3:
        raise ValueError(f"x: got shape {tuple(x.shape)}; its axis {axis} must have 3 channels")
    hub = None if weights is None else preprocessing(weights)
    constants = IMAGENET if hub is None else (hub.mean, hub.std)
    mean, std = (np.array(values).reshape((3,) + (1,) * (-1 - axis)) for values in constants)
    if isinstance(x, np.ndarray):
        return (x - mean) / std
    if "float" not in keras.backend.standardize_dtype(x.dtype):
        x = ops.cast(x, keras.config.floatx())
    return ops.divide(ops.subtract(x, ops.cast(mean, x.dtype)), ops.cast(std, x.dtype))


def decode_predictions(
    predictions: Any, top: int = 5, *, weights: str | None = None
) -> list[list[tuple[str, str, float]]]:
    """Return the most probable classes of each image: (identifier, name, probability).

    Args:
        predictions: probabilities, `(batch, classes)`.
        top: number of classes.
        weights: name of published weights, whose classes are used; ImageNet's thousand, whose
            names Keras downloads, if not given.

    Raises:
        ValueError: for unknown weights, or predictions of another shape.

    >>> decode_predictions(np.eye(10)[:1], top=1, weights="resnext11_7x7d/fashion_mnist")
    [[('0', 'T-shirt/top', 1.0)]]
    """
    predictions = real_array("predictions", predictions)
    positive_int("top", top)
    if weights is None:
        return keras.applications.imagenet_utils.decode_predictions(predictions, top)
    names = _published(weights)["classes"]
    if predictions.ndim != 2 or predictions.shape[1] != len(names):
        raise ValueError(
            f"predictions: got shape {predictions.shape}; it must be (batch, {len(names)})"
        )
    best = np.argsort(-predictions, axis=1)[:, :top]
    return [
        [(str(index), names[index], float(row[index])) for index in order]
        for row, order in zip(predictions, best, strict=True)
    ]


def _published(weights: str) -> dict[str, Any]:
    text("weights", weights)
    known = published_weights()
    if weights not in known:
        raise ValueError(f"weights: got {brief(weights)}; published are {', '.join(known)}")
    return known[weights]
