"""Layers, paths, modules and networks, as functions of one width."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ce_keras.checks import (
    MOST,
    boolean,
    brief,
    finite_number,
    function,
    instance,
    positive_int,
    real_values,
    sequence_of,
    text,
)

#: The widest baseline: a search looks at every width below it.
MOST_WIDTH = 2**20

#: A width or cardinality, or an array of them, for which results are arrays too.
Width = Any


class Design(NamedTuple):
    """A collegial ensemble's shape: `cardinality` paths of `width`, written like `37x10d`.

    >>> print(Design(37, 10), Design.parse("12x10d").width)
    37x10d 10
    """

    cardinality: int
    width: int

    def __str__(self) -> str:
        return f"{self.cardinality}x{self.width}d"

    @classmethod
    def parse(cls, text: str) -> Design:
        """Return the design written like `"37x10d"`. Raise `ValueError` for anything else."""
        match = re.fullmatch(r"([1-9]\d{0,9})x([1-9]\d{0,9})d", str(text))
        if match is None or max(int(match[1]), int(match[2])) > MOST:
            raise ValueError(
                f"design: got {brief(text)}; write cardinality and width like '37x10d' "
                f"(37 paths, each 10 wide), each at most {MOST:,}"
            )
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Layer:
    """One linear layer of a path, or of a network: dense or convolutional.

    Attributes:
        fan_in: inputs that one output unit sums: for a convolution,
            `kernel_h * kernel_w * input_channels` of one path.
        outputs: output units, or channels.
        positions: places at which the layer is applied (output pixels of a convolution).
        bias: whether each output has a trained shift.
        norm: whether a normalisation with trained scale and shift follows.
        in_law: whether `1 / fan_in` counts in the variance law (Eq. 9).
    """

    fan_in: Width
    outputs: Width
    positions: int = 1
    bias: bool = False
    norm: bool = False
    in_law: bool = True

    def __post_init__(self) -> None:
        # A rewritten model's difference from its counted layers may be negative.
        real_values("fan_in", self.fan_in)
        real_values("outputs", self.outputs, least=0)
        finite_number("positions", self.positions, 0)
        for flag in ("bias", "norm", "in_law"):
            boolean(flag, getattr(self, flag))

    @property
    def params(self) -> Width:
        """Trained parameters."""
        return (self.fan_in + self.bias + 2 * self.norm) * self.outputs

    @property
    def flops(self) -> Width:
        """Floating-point operations for one example, two for each multiply-add."""
        return 2 * self.fan_in * self.outputs * self.positions


def dense(inputs: Width, outputs: Width, **options: Any) -> Layer:
    """Return a fully connected layer; `options` are :class:`Layer`'s other attributes."""
    real_values("inputs", inputs, above=0)
    real_values("outputs", outputs, least=0)
    return Layer(inputs, outputs, **options)


def conv(inputs: Width, outputs: Width, kernel: int = 1, **options: Any) -> Layer:
    """Return a convolution with a square `kernel`; `options` are :class:`Layer`'s attributes."""
    real_values("inputs", inputs, above=0)
    real_values("outputs", outputs, above=0)
    positive_int("kernel", kernel)
    return Layer(kernel * kernel * inputs, outputs, **options)


class Stack(NamedTuple):
    """Layers without biases, with ReLU between them, of which one output unit is read.

    Attributes:
        inputs: features of the input (channels of a pixel, for a convolution).
        positions: places the first layer is applied at and the second reads together: 1 for a
            fully connected network, 9 below a 3x3 convolution.
        widths: units of the hidden layers, first to last.
        activation: between the layers: `"relu"`, or another that is linear on either side of zero,
            as `ce_keras.variance.kernel_moments` takes it.
    """

    inputs: int
    positions: int
    widths: Sequence[Width]
    activation: Any = "relu"


@dataclass(frozen=True)
class Module:
    """A module to ensemble: `cardinality` independent paths, each a function of one width.

    Describe your own by the layers of one path. The example is a basic residual block of two
    3x3 convolutions between 64 channels:

    >>> basic = Module("basic block", width=64,
    ...                path=lambda n: [conv(64, n, 3), conv(n, 64, 3)], alpha=2.0)
    >>> basic.params(1, 64)
    73728

    Attributes:
        name: its name in reports.
        width: the width of the baseline's single path.
        path: the layers of one path of a given width. Must accept an array of widths.
        alpha: the constant of the variance law for this module, used where the search is given
            none; `None` if it is not known.
        stack: one path as a plain stack of ReLU layers, a function of the width, if it is one:
            the closed form and the samplers of `ce_keras.variance` need it.
    """

    name: str
    width: int
    path: Callable[[Width], Sequence[Layer]]
    alpha: float | None = None
    stack: Callable[[Width], Stack] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", positive_int("width", self.width, MOST_WIDTH))
        text("name", self.name)
        function("path", self.path, "a function from a width to a list of layers")
        if self.alpha is not None:
            finite_number("alpha", self.alpha, above=0)
        if self.stack is not None:
            function("stack", self.stack, "a function from a width to a Stack")

    @property
    def module(self) -> Module:
        """The module itself, as `Network.module` is the one that the variance law is read from."""
        return self

    def inverse_fan_in(self, width: Width) -> Width:
        """Return the sum of 1 / fan_in over the layers of one path that count in Eq. 9."""
        real_values("width", width, above=0)
        return _sum((1 / layer.fan_in for layer in self.layers(width) if layer.in_law), width)

    def params(self, cardinality: Width, width: Width) -> Width:
        """Return the trained parameters of the ensemble, m * beta(n) in Eq. 8."""
        return _total("params", (), self.layers, cardinality, width)

    def flops(self, cardinality: Width, width: Width) -> Width:
        """Return the FLOPs of the ensemble for one example."""
        return _total("flops", (), self.layers, cardinality, width)

    def layers(self, width: Width) -> Sequence[Layer]:
        """Return the layers of one path.

        Raises:
            ValueError: if there are none, or `path` cannot take an array of widths.
        """
        real_values("width", width, above=0)
        try:
            layers = self.path(width)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"path: that of {self.name!r} fails for widths {width!r} ({error}); it must take "
                "an array, so write np.maximum for max, and // for int(... / ...)"
            ) from error
        if not layers:
            raise ValueError(f"path: that of {self.name!r} has no layers")
        return layers


@dataclass(frozen=True)
class Network:
    """Modules stacked, with the layers around them that every design shares.

    Attributes:
        name: its name in reports.
        module: the module whose variance law decides (the first stage's block).
        paths: the layers of one path of every module in the network, given the first's width.
        fixed: the layers that no design changes.
        stages: the module of every stage, at the baseline's width there, where they differ.
    """

    name: str
    module: Module
    paths: Callable[[Width], Sequence[Layer]]
    fixed: Sequence[Layer]
    stages: Sequence[Module] = ()

    def __post_init__(self) -> None:
        text("name", self.name)
        instance("module", self.module, Module, "a geometry.Module")
        function("paths", self.paths, "a function from a width to a list of layers")
        for name, kind in {"fixed": Layer, "stages": Module}.items():
            for each in sequence_of(name, getattr(self, name), lambda _, value: value):
                instance(name, each, kind, f"a list of geometry.{kind.__name__}s")

    @property
    def width(self) -> int:
        """The width of the baseline's single path in the first stage."""
        return self.module.width

    def params(self, cardinality: Width, width: Width) -> Width:
        """Return the trained parameters of the whole network."""
        return _total("params", self.fixed, self.paths, cardinality, width)

    def flops(self, cardinality: Width, width: Width) -> Width:
        """Return the FLOPs of the whole network for one example."""
        return _total("flops", self.fixed, self.paths, cardinality, width)


def _total(
    quantity: Literal["params", "flops"],
    fixed: Sequence[Layer],
    path: Callable[[Width], Sequence[Layer]],
    cardinality: Width,
    width: Width,
) -> Width:
    """Return the parameters or FLOPs of the fixed layers and of `cardinality` paths."""
    real_values("cardinality", cardinality, least=0)  # 0 leaves the fixed layers alone.
    real_values("width", width, above=0)
    if np.ndim(width):  # Whole numbers of NumPy overflow.
        width = np.asarray(width, dtype=float)
    of_path = _sum((getattr(layer, quantity) for layer in path(width)), width)
    return cardinality * of_path + sum(getattr(layer, quantity) for layer in fixed)


def _sum(terms: Iterable[Width], width: Width) -> Width:
    """Return the sum, as an array for an array of widths even if the terms do not depend on it."""
    total = sum(terms)
    return total if np.ndim(width) == 0 else total + np.zeros(np.shape(width), dtype=np.int64)
