"""Weights of ResNets and ResNeXts to and from PyTorch, and from `keras.applications`.

torchvision, timm and most others name the parts of a ResNet alike: `layer2.0.conv3.weight`,
`layer2.0.downsample.1.running_var`, `fc.bias`. Their networks are those of this zoo: strides in the
3x3 convolution, equal padding on all sides, 1e-5 in the normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ce_keras.checks import boolean, keras_model
from ce_keras.zoo.weight_files import plain_state, read_state
from ce_keras.zoo.weights import assign, named

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"} | {
    "moving_variance": "running_var"
}
_KINDS = {theirs: ours for ours, theirs in _NORM.items()}

# Parts of variants that this zoo does not have.
_OTHER_STEM = re.compile(r"conv1\.\d|.*\.(se|attn|downsample\.2|aa)\b")


def from_torch(
    model: keras.Model, state: Mapping[str, Any] | str | Path, partial: bool = False
) -> None:
    """Load the weights of a PyTorch ResNet or ResNeXt into a network of the zoo of the same design.

    Args:
        model: as built by `ce_keras.zoo`: `resnext50(mode="resnext")` for `resnext50_32x4d`.
        state: a state dictionary of arrays or tensors, or a file of `.safetensors` or of PyTorch
            (`.pth`, `.pt`, `.pth.tar`, `.bin`, `.ckpt`), recognised by its content. A file of
            PyTorch needs PyTorch, and is read with `weights_only=True`. Wrappers of training
            scripts, `{"state_dict": ...}` or a `module.` before every name, are removed.
        partial: whether the state may have more weights than the model, as of a classifier.

    Raises:
        ValueError: for a file that cannot be read; for weights that are missing, too many, of
            other shapes, not real numbers, or of a variant with another stem or other blocks.
        ImportError: for a file of PyTorch if PyTorch is not installed.
    """
    keras_model("model", model)
    boolean("partial", partial)
    where = "state"
    if isinstance(state, str | Path):
        where, state = f"state: {state}", plain_state("state", read_state("state", state), state)
    else:
        state = plain_state("state", state, "the dictionary")
    variables = named(model)
    for name in variables:
        _torch_name(name)  # Refuses a model that is no ResNet.
    assign(model, zoo_arrays(state, where, variables, partial), where, partial)


def zoo_arrays(
    state: Mapping[str, Any], where: str, wanted: Container[str], partial: bool = False
) -> dict[str, np.ndarray]:
    """Return a PyTorch ResNet's weights by the zoo's names of variables, in Keras' layout.

    Args:
        state: a state dictionary of arrays or tensors.
        where: its source, with which messages begin.
        wanted: names of variables. Others keep the name that they have in `state`.
        partial: whether to leave out the others.

    Raises:
        ValueError: for weights of a variant, or that are not real numbers.
    """
    variants = sorted(name for name in state if _OTHER_STEM.match(name))
    if variants:
        raise ValueError(
            f"{where}: {variants[0]} is of a variant (a deep stem, squeeze-and-excite, pooled "
            "shortcuts): only the plain ResNet and ResNeXt are known"
        )
    arrays = {}
    for name, value in state.items():
        ours = zoo_name(name)
        if ours in wanted or not (partial or name.endswith("num_batches_tracked")):
            key = ours if ours in wanted else name
            arrays[key] = _ours(_array(f"{where}: {name}", value))
    return arrays


def zoo_name(name: str) -> str:
    """Return the zoo's name of a weight of PyTorch's ResNets; any other name as it is.

    >>> zoo_name("layer2.0.downsample.1.running_var"), zoo_name("fc.weight")
    ('conv3_block1_0_bn/moving_variance', 'predictions/kernel')
    """
    layer, _, kind = name.rpartition(".")
    ours = {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}.get(layer)
    match = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))", layer)
    if match:
        part = match[3] or ("conv", "bn")[int(match[5])]
        ours = f"conv{int(match[1]) + 1}_block{int(match[2]) + 1}_{match[4] or 0}_{part}"
    kinds = _KINDS if ours and ours.endswith("_bn") else {"weight": "kernel", "bias": "bias"}
    return f"{ours}/{kinds[kind]}" if ours and kind in kinds else name


def to_torch(model: keras.Model) -> dict[str, np.ndarray]:
    """Return a network's weights as a state dictionary of PyTorch's ResNets, of NumPy arrays.

    Load it with `module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()},
    strict=False)`: it does not have PyTorch's count of batches.

    >>> from ce_keras import zoo
    >>> state = to_torch(zoo.create("resnext50_2x3d", classes=5))
    >>> state["layer3.0.conv2.weight"].shape  # 2 paths, each 4 times 3 wide.
    (24, 12, 3, 3)
    """
    keras_model("model", model)
    arrays = {}
    for name, variable in named(model).items():
        value = np.asarray(variable)
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
        arrays[_torch_name(name)] = np.ascontiguousarray(value)
    return arrays


def _torch_name(name: str) -> str:
    """Return PyTorch's name of a variable such as `conv3_block1_0_bn/gamma`.

    Raises:
        ValueError: for a variable that is not of a ResNet.
    """
    layer, _, weight = name.rpartition("/")
    kind = _NORM.get(weight, {"kernel": "weight"}.get(weight, weight))
    if layer == "predictions":
        return f"fc.{kind}"
    if layer in ("conv1_conv", "conv1_bn"):
        return f"{'conv1' if layer == 'conv1_conv' else 'bn1'}.{kind}"
    match = re.fullmatch(r"conv(\d+)_block(\d+)_(\d)_(conv|bn)", layer)
    if match is None:
        raise ValueError(f"model: {name} has no counterpart in PyTorch's ResNets")
    stage, block, step = (int(match[i]) for i in (1, 2, 3))
    if step == 0:
        part = "downsample.0" if match[4] == "conv" else "downsample.1"
    else:
        part = f"{match[4]}{step}"
    return f"layer{stage - 1}.{block - 1}.{part}.{kind}"


def _ours(value: np.ndarray) -> np.ndarray:
    if value.ndim == 4:  # (outputs, inputs of a group, height, width)
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def _array(where: str, value: Any) -> np.ndarray:
    """Return a tensor or array as an array.

    Raises:
        ValueError: for a tensor of integers, truth values or complex numbers.
    """
    if not hasattr(value, "detach"):
        return np.asarray(value)
    if not value.is_floating_point():
        raise ValueError(f"{where} has numbers of type {value.dtype}; weights are real numbers")
    return np.asarray(value.detach().cpu().float())  # NumPy has no bfloat16.


def from_applications(model: keras.Model, source: keras.Model) -> None:
    """Load the weights of a ResNet of `keras.applications` into a `resnet50` or one like it.

    The biases of its convolutions, which precede normalisation, go into the moving means.

    Args:
        model: a network of `ce_keras.zoo`, with one path.
        source: a network with the same names of layers.

    Raises:
        ValueError: if the networks compute different functions. `keras.applications.ResNet50` is
            one such: its strides are in the first 1x1 convolution of a block, here in the 3x3.
    """
    keras_model("model", model)
    keras_model("source", source)
    arrays: dict[str, np.ndarray] = {}
    own = {layer.name for layer in model.layers} | {"predictions"}
    more = [layer.name for layer in source.layers if layer.weights and layer.name not in own]
    if more:
        raise ValueError(f"source: {source.name} has {more[0]}, which {model.name} has not")
    theirs = {layer.name: layer for layer in source.layers}
    for layer in model.layers:
        if not layer.weights:
            continue
        other = theirs.get(layer.name)
        if other is None:
            raise ValueError(f"source: {source.name} has no layer {layer.name}")
        _compare(layer, other)
        arrays |= {f"{layer.name}/{w.name}": np.asarray(w) for w in other.weights}
    for name in [name for name in arrays if name.endswith("_conv/bias")]:
        norm = name.replace("_conv/bias", "_bn/moving_mean")
        arrays[norm] = arrays[norm] - arrays.pop(name)
    assign(model, arrays, f"source: {source.name}")


def _compare(ours: Any, theirs: Any) -> None:
    attributes = ["strides", "groups", "dilation_rate", "epsilon"]
    if getattr(ours, "strides", (1, 1)) != (1, 1):
        attributes.append("padding")  # Without strides, one pixel all round is Keras' "same".
    for attribute in attributes:
        one, other = getattr(ours, attribute, None), getattr(theirs, attribute, None)
        if attribute == "epsilon" and one is not None:
            # The published networks' 1.001e-5 is 1e-5 as far as float32 outputs go.
            same = other is not None and abs(one - other) <= 1e-7
        else:
            same = one == other
        if not same:
            raise ValueError(
                f"source: {theirs.name} has {attribute} {other}, ours {one}: the same weights "
                "would not be the same function"
            )
