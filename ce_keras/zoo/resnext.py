"""ResNeXts of any depth and design: one builder, and the table of networks."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import keras
from keras import layers

from ce_keras.checks import boolean, brief, instance, one_of, text
from ce_keras.designs import DesignMode, choose_design
from ce_keras.geometry import RESNEXTS, Design, ResNeXt
from ce_keras.layers.bottleneck import batch_norm, collegial_bottleneck
from ce_keras.zoo.building import (
    channel_axis,
    check_outputs,
    checked_shape,
    classifier,
    convolution,
    defaults,
    layer_seeds,
)
from ce_keras.zoo.hub import find_resnext_weights
from ce_keras.zoo.weights import load_weights


def build_resnext(
    shape: ResNeXt,
    design: Design,
    *,
    include_top: bool = True,
    weights: str | pathlib.Path | None = None,
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | None = "softmax",
    seed: int | None = None,
    name: str = "resnext",
    features_only: bool = False,
    dtype: Any = None,
    data_format: str | None = None,
) -> keras.Model:
    """Build a ResNeXt of any shape and design, as a functional Keras model.

    Args:
        shape: stages, stem and channels; `ce_keras.geometry.RESNEXTS` has the paper's.
        design: cardinality, and width of a path in the first stage; it doubles with each stage.
        include_top: as in `ce_keras.zoo.resnext50`, and so are all further arguments.
        weights: `None`, a file, the name of published weights, or an address of the Hub.
        input_tensor: a Keras tensor to build on.
        input_shape: shape of the images.
        pooling: without the classifier: `"avg"`, `"max"`, or `None` for the feature map.
        classes: number of outputs of the classifier; the shape's if not given.
        classifier_activation: `"softmax"`, or `None` for logits.
        seed: for reproducible weights; Keras' global generator if not given.
        name: name of the model.
        features_only: whether to return the feature maps of all stages.
        dtype: dtype of the layers, or a policy.
        data_format: `"channels_last"` or `"channels_first"`.

    Raises:
        ValueError: for arguments that do not fit; before anything is built.
    """
    with defaults(dtype, data_format):
        instance("shape", shape, ResNeXt, "a geometry.ResNeXt")
        instance("design", design, Design, "a geometry.Design")
        classes = shape.classes if classes is None else classes
        check_outputs(text("name", name), classes, classifier_activation)
        one_of("pooling", pooling, (None, "avg", "max"))
        top = boolean("include_top", include_top) and not boolean("features_only", features_only)
        if pooling is not None and features_only:
            raise ValueError(f"pooling: got {pooling!r}; there is none of feature maps")
        source = find_resnext_weights(weights, name, shape, design)
        seeds = iter(layer_seeds(seed, sum(shape.blocks) + 2))
        image = _image_input(shape, input_tensor, input_shape, top)
        levels = _stages(image, shape, design, seeds)
        x: Any = list(levels.values())[-1]
        if features_only:
            x = levels
        elif include_top:
            x = classifier(x, classes, classifier_activation, next(seeds))
        elif pooling == "avg":
            x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        elif pooling == "max":
            x = layers.GlobalMaxPooling2D(name="max_pool")(x)

        sources = keras.utils.get_source_inputs(image)
        model = keras.Model(sources[0] if len(sources) == 1 else sources, x, name=name)
    if source is not None:
        # The file has the layers built here, not those that `input_tensor` comes from.
        load_weights(keras.Model(image, x), source, partial=not top)
    return model


def _stages(
    image: Any, shape: ResNeXt, design: Design, seeds: Iterator[int | None]
) -> dict[str, Any]:
    """Return the feature map of every stage, by its level."""
    level = int(math.log2(shape.stem_strides)) + shape.pool
    levels = {}
    x = _stem(image, shape, next(seeds))
    for stage, blocks in enumerate(shape.blocks):
        for block in range(blocks):
            x = collegial_bottleneck(
                x,
                filters=shape.filters * 2**stage,
                cardinality=design.cardinality,
                width=design.width * 2**stage,
                strides=2 if stage > 0 and block == 0 else 1,
                seed=next(seeds),
                name=f"conv{stage + 2}_block{block + 1}",
            )
        levels[f"P{level + stage}"] = x
    return levels


def _stem(x: Any, shape: ResNeXt, seed: int | None) -> Any:
    x = convolution(x, shape.stem, shape.stem_kernel, shape.stem_strides, seed, "conv1")
    x = batch_norm(channel_axis(), "conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    if shape.pool:
        # Padding with zeros is padding with minus infinity: after the ReLU no value is negative.
        x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    return x


class Constructor(Protocol):
    """A function that builds one network of the zoo, with `keras.applications`' arguments."""

    def __call__(
        self,
        include_top: bool = ...,
        weights: str | pathlib.Path | None = ...,
        input_tensor: Any = ...,
        input_shape: tuple[int | None, ...] | None = ...,
        pooling: str | None = ...,
        classes: int = ...,
        classifier_activation: str | None = ...,
        name: str | None = ...,
        *,
        mode: DesignMode | None = ...,
        cardinality: int | None = ...,
        width: int | None = ...,
        seed: int | None = ...,
        features_only: bool = ...,
        dtype: Any = ...,
        data_format: str | None = ...,
    ) -> keras.Model:
        """Build the network; `help(ce_keras.zoo.resnext50)` describes the arguments."""


_PUBLISHED = "published in Tables 1 and 2 of the paper; `ce-keras list` prints them"
_DERIVED = "derived by `ce_keras.search`: the paper does not have this network"

_DOCSTRING = """{what}, as a collegial ensemble of any design.

Args:
    include_top: whether to end in a classifier.
    weights: a `.weights.h5` or `.safetensors` file; the data set of published weights
        (`ce_keras.zoo.published_weights`); an address of the Hugging Face Hub, such as
        `"hf://timm/resnext50_32x4d.tv_in1k"` (`pip install 'ce-keras[hub]'`); or `None` for random
        weights.
    input_tensor: a Keras tensor to build on.
    input_shape: shape of the images; {shape} with the classifier, any size without, if not given.
    pooling: without the classifier: `"avg"`, `"max"`, or `None` for the feature map.
    classes: number of outputs of the classifier.
    classifier_activation: `"softmax"`, or `None` for logits.
    name: name of the model; `{family}_` and the design if not given.
    mode: `"primal"` (the least kernel variance at the baseline's size), `"dual"` (the least size
        at the baseline's variance), `"baseline"` (one path), or `"resnext"` (the ResNeXt paper's,
        by grid search). `"{usual}"` if neither this nor a design is given.
    cardinality: number of paths; with `width`, instead of `mode`. With `mode`, it chooses among
        that mode's published designs.
    width: channels of a path in the first stage.
    seed: for reproducible weights.
    features_only: whether to return the feature maps of all stages, by level: `"P3"` has an eighth
        of the image's height and width.
    dtype: dtype of the layers, or a policy's name; Keras' default if not given.
    data_format: `"channels_last"` or `"channels_first"`; Keras' default if not given.

Returns:
    A functional `keras.Model`; its output is a dictionary for `features_only`.

Raises:
    ValueError: for arguments that contradict each other or do not fit.

Designs: {source}.
"""


def _constructor(name: str, what: str, *, source: str = _PUBLISHED) -> Constructor:
    """Return the function that builds a network of the table below."""
    family = name.replace("resnet", "resnext")
    shape = RESNEXTS[family]
    usual: DesignMode = "primal" if name == family else "baseline"
    prefix = name

    def construct(
        include_top: bool = True,
        weights: str | pathlib.Path | None = None,
        input_tensor: Any = None,
        input_shape: tuple[int | None, ...] | None = None,
        pooling: str | None = None,
        classes: int = shape.classes,
        classifier_activation: str | None = "softmax",
        name: str | None = None,
        *,
        mode: DesignMode | None = None,
        cardinality: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        features_only: bool = False,
        dtype: Any = None,
        data_format: str | None = None,
    ) -> keras.Model:
        if mode is None and cardinality is None and width is None:
            mode = usual
        design = choose_design(family, mode, cardinality, width)
        return build_resnext(
            shape,
            design,
            include_top=include_top,
            # Published weights are of the design, whatever the model is called.
            weights=find_resnext_weights(weights, f"{prefix}_{design}", shape, design),
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            seed=seed,
            name=f"{prefix}_{design}" if name is None else name,
            features_only=features_only,
            dtype=dtype,
            data_format=data_format,
        )

    construct.__name__ = construct.__qualname__ = prefix
    construct.__doc__ = _DOCSTRING.format(
        what=what, family=prefix, usual=usual, shape=shape.input_shape, source=source
    )
    return construct


# The table of networks. The ResNets are the baselines by the names that everybody knows.
resnext11 = _constructor("resnext11", "A small ResNeXt for 28x28 images", source=_DERIVED)
resnext11c = _constructor("resnext11c", "A small ResNeXt for CIFAR", source=_DERIVED)
resnext29 = _constructor("resnext29", "ResNeXt-29 for CIFAR")
resnext38 = _constructor(
    "resnext38", "ResNeXt-29 with a fourth stage, for ImageNet at 64x64 pixels", source=_DERIVED
)
resnext50 = _constructor("resnext50", "ResNeXt-50 for ImageNet")
resnext101 = _constructor("resnext101", "ResNeXt-101 for ImageNet")
resnext152 = _constructor("resnext152", "ResNeXt-152 for ImageNet", source=_DERIVED)
resnet50 = _constructor("resnet50", "ResNet-50 for ImageNet")
resnet101 = _constructor("resnet101", "ResNet-101 for ImageNet")
resnet152 = _constructor("resnet152", "ResNet-152 for ImageNet")


def _image_input(
    shape: ResNeXt,
    tensor: Any,
    input_shape: tuple[int | None, ...] | None,
    include_top: bool,
) -> Any:
    channels_last = channel_axis() == -1
    if input_shape is not None:
        input_shape = checked_shape(input_shape)
    if tensor is not None:
        if not hasattr(tensor, "shape") or len(tensor.shape) != 4:
            raise ValueError(
                f"input_tensor: got {brief(tensor)}; it must be a Keras tensor of images"
            )
        tensor = tensor if isinstance(tensor, keras.KerasTensor) else keras.Input(tensor=tensor)
        if input_shape is not None and tuple(input_shape) != tuple(tensor.shape[1:]):
            raise ValueError(
                f"input_shape: got {input_shape}, but input_tensor has {tuple(tensor.shape[1:])}; "
                "leave one of them out"
            )
        input_shape = tensor.shape[1:]
    elif input_shape is None:
        height, width, channels = shape.input_shape
        size = (height, width) if include_top else (None, None)
        input_shape = (*size, channels) if channels_last else (channels, *size)
    input_shape = checked_image_shape(shape, input_shape)
    return keras.Input(input_shape) if tensor is None else tensor


def checked_image_shape(shape: ResNeXt, input_shape: Any) -> tuple[int | None, ...]:
    """Return the shape of the images of a ResNeXt.

    Raises:
        ValueError: unless it has height, width and channels, large enough for every stage.
    """
    found = checked_shape(input_shape)
    channels_last = channel_axis() == -1
    sides = found[:-1] if channels_last else found[1:]
    smallest = shape.stem_strides * 2 ** (len(shape.blocks) - 1 + shape.pool)
    if (
        len(sides) != 2
        or not found[-1 if channels_last else 0]
        or any(side is not None and side < smallest for side in sides)
    ):
        raise ValueError(
            f"input_shape: got {brief(found)}; it must be height, width and channels, "
            f"with sides of {smallest} or more"
        )
    return found
