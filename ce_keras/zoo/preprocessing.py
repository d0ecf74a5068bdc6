"""Preprocessing that a network of the Hugging Face Hub was trained with."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from ce_keras.checks import boolean, brief, finite_number, one_of, positive_int, sequence_of
from ce_keras.zoo.hub import description

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Preprocessing(NamedTuple):
    """Images to the inputs of a network: resize, crop the centre, normalise.

    Attributes:
        size: side of the square that is cropped; `input_shape=(size, size, 3)` of the network.
        resized: length that the shorter side is given before.
        interpolation: Pillow's name of how it is resized.
        mean: of red, green and blue, from 0 to 255.
        std: standard deviation of each.
    """

    size: int
    resized: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Any, data_format: str | None = None) -> np.ndarray:
        """Return the inputs of the network, in single precision.

        Args:
            images: a list of RGB images of any sizes, from 0 to 255, of Pillow or as arrays of
                bytes `(height, width, 3)`; or such a batch.
            data_format: `"channels_last"` or `"channels_first"`; Keras' default if not given.

        Raises:
            ValueError: for anything else.

        >>> preprocess = Preprocessing(4, 8, "bilinear", (127.5,) * 3, (127.5,) * 3)
        >>> preprocess([np.full((20, 10, 3), 255, "uint8")]).shape
        (1, 4, 4, 3)
        """
        one_of("data_format", data_format, (None, "channels_last", "channels_first"))
        if isinstance(images, np.ndarray):
            images = list(images)
        inputs = np.stack(sequence_of("images", images, self._one))
        inputs = (inputs - np.array(self.mean, "float32")) / np.array(self.std, "float32")
        last = (data_format or keras.config.image_data_format()) == "channels_last"
        return inputs if last else inputs.transpose(0, 3, 1, 2)

    def _one(self, argument: str, value: Any) -> np.ndarray:
        from PIL import Image

        if isinstance(value, Image.Image):
            image = value.convert("RGB")
        else:
            array = np.asarray(value)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
                raise ValueError(
                    f"{argument}: got {array.dtype} of shape {array.shape}; an image must be "
                    "uint8 of shape (height, width, 3), or one of Pillow's"
                )
            image = Image.fromarray(array)
        short = min(image.size)
        # As torchvision, which rounds the longer side down and the margins to the nearest number.
        width, height = (self.resized * side // short for side in image.size)
        image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = (round((side - self.size) / 2) for side in image.size)
        cropped = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(cropped, np.float32)


def preprocessing(weights: str, test_size: bool = False) -> Preprocessing:
    """Return the preprocessing of weights of the Hub, as their description says it.

        x = zoo.preprocessing("hf://timm/resnext50_32x4d.tv_in1k")(images)

    Args:
        weights: address of the weights, as the network was given it.
        test_size: whether images get the size that the published accuracy is measured at, where
            it is another than in training.

    Raises:
        ValueError: for an address that cannot be read, or preprocessing other than resizing,
            cropping the centre of a square and normalising.
        ImportError: without `huggingface_hub`, if it is needed.
    """
    boolean("test_size", test_size)
    _, _, config = description(weights)
    card: dict[str, Any] = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
    card |= config["pretrained_cfg"]
    side, crop = card.get("input_size"), card["crop_pct"]
    if test_size:
        side, crop = card.get("test_input_size") or side, card.get("test_crop_pct") or crop
    where = f"weights: {weights}"
    try:
        channels, height, width = sequence_of("input_size", side, positive_int)
        if channels != 3 or height != width or card["crop_mode"] != "center":
            raise ValueError(f"input_size {side}, crop_mode {brief(card['crop_mode'])}")
        one_of("interpolation", card["interpolation"], _INTERPOLATIONS)
        crop = finite_number("crop_pct", crop, above=0, most=1)
        mean, std = (
            tuple(255 * each for each in sequence_of(key, card.get(key), finite_number))
            for key in ("mean", "std")
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {mean}, std {std}: each must have three numbers")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: its preprocessing is not known: {error}") from None
    return Preprocessing(height, math.floor(height / crop), card["interpolation"], mean, std)
