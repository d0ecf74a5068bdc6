"""What can be ensembled in a Keras model: the modules of the paper, as chains of layers.

A chain is an *entry*, one or more *hidden* layers behind it and an *exit*, such that all that the
entry computes reaches the model's output through the exit alone. Then whatever lies between can be
computed path by path: the exit sums the paths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import layers

from ce_keras.layers.collegial import CollegialConv2D, CollegialDense
from ce_keras.layers.grouping import (
    CannotGroupError,
    check_penalties,
    is_unchanged,
    widened,
)
from ce_keras.rewrite.graph import Graph, Step

DENSE = (layers.Dense, CollegialDense)
CONV = (layers.Conv2D, CollegialConv2D)
BY_CHANNEL = (
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
)


class Map(NamedTuple):
    """A linear map of a chain.

    Attributes:
        layer: the Keras layer.
        pixels: of its kernel; 1 for a dense layer.
        inputs: channels it reads.
        base: channels of the chain's layer before, of which the inputs are a multiple: behind a
            Flatten it reads all pixels of each.
        outputs: channels it gives.
        positions: places it is applied at; `None` if that is not known.
        gate: whether it lies beside the chain, as in squeeze-and-excite: the law leaves it out.
    """

    layer: Any
    pixels: int
    inputs: int
    base: int
    outputs: int
    positions: int | None
    gate: bool = False


class Between(NamedTuple):
    """A layer between linear maps that has a form of its own for paths.

    Attributes:
        layer: the Keras layer.
        shapes: of its inputs.
        base: as of a `Map`.
    """

    layer: Any
    shapes: tuple[tuple[int | None, ...], ...]
    base: int


@dataclass(frozen=True, eq=False)
class Chain:
    """A module that can be ensembled.

    Attributes:
        name: the common beginning of its layers' names.
        kind: `"bottleneck"` (convolutions 1x1, k x k, 1x1) or `"dense"`.
        maps: its linear maps, first to last; the last is the exit.
        between: the other layers that have to know of paths.
        prefix: of the layers' names, where the chain lies in a model within the model.
    """

    name: str
    kind: str
    maps: tuple[Map, ...]
    between: tuple[Between, ...]
    prefix: str = ""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the hidden layers, first to last, gates left out."""
        return tuple(each.outputs for each in self.maps[:-1] if not each.gate)

    @property
    def layers(self) -> list[str]:
        """Names of the linear layers."""
        return [self.prefix + each.layer.name for each in self.maps]


def is_entry(layer: Any) -> bool:
    """Whether a chain can begin with this layer."""
    if cardinality_of(layer) > 1:
        return False
    return type(layer) in DENSE or (type(layer) in CONV and kernel_of(layer) == (1, 1))


def kernel_of(layer: Any) -> tuple[int, ...]:
    """The sides of its kernel, in pixels."""
    return tuple(getattr(layer, "kernel_size", (1,)))


def cardinality_of(layer: Any) -> int:
    """How many groups it has, of whichever kind."""
    return max(getattr(layer, "groups", 1), getattr(layer, "cardinality", 1))


class _Growth:
    """A chain while it is followed from its entry; `live` tensors still have readers to come."""

    def __init__(self, graph: Graph, kind: str) -> None:
        self.graph = graph
        self.kind = kind
        self.maps: list[Map] = []
        self.between: list[Between] = []
        self.inside: dict[int, Any] = {}
        self.bases: dict[int, int] = {}
        self.seen = -1

    def _live(self) -> list[Any]:
        """Tensors that something still to come reads, be it whoever calls the model."""
        return [
            tensor
            for tensor in self.inside.values()
            if any(at > self.seen or at == -1 for at in self.graph.readers.get(id(tensor), []))
        ]

    def is_cut(self, position: int) -> bool:
        """Whether all that the entry computed goes through this step."""
        self.seen = position - 1
        (only, *others) = self._live() or [None]
        return not others and self.graph.readers.get(id(only)) == [position]

    def add(self, step: Step, position: int) -> None:
        """The outputs are inside too."""
        self.inside.update((id(tensor), tensor) for tensor in step.outputs)
        self.seen = position
        linear = type(step.operation) in (*DENSE, *CONV)
        base = step.outputs[0].shape[-1] if linear else self.base(step)
        self.bases.update((id(tensor), base) for tensor in step.outputs)

    def base(self, step: Step) -> int:
        """Outputs of the linear map that a step's input goes back to."""
        tensor = step.inputs[0]
        return self.bases.get(id(tensor), tensor.shape[-1])


def grow(graph: Graph, start: int, prefix: str) -> Chain:
    """The chain that begins with a step.

    Raises:
        CannotGroupError: if there is none, saying why.
    """
    entry = graph.steps[start]
    kind = "dense" if type(entry.operation) in DENSE else "bottleneck"
    growth = _Growth(graph, kind)
    if graph.readers.get(id(entry.outputs[0])) == [-1]:
        raise CannotGroupError("it gives the model's output: no hidden layer")
    _check_map(entry, shared=True)
    growth.maps.append(_map_of(growth, entry))
    growth.add(entry, start)
    best, stop = _followed(growth, start, prefix)
    if best is None:
        raise CannotGroupError(_why_no_chain(growth, stop))
    if min(best.widths) < 2:
        raise CannotGroupError(f"too narrow: hidden widths {best.widths}")
    return best


def _followed(growth: _Growth, start: int, prefix: str) -> tuple[Chain | None, str]:
    """The longest chain of dense layers, or the first of convolutions; and what stopped it."""
    graph = growth.graph
    best: Chain | None = None
    for position in range(start + 1, len(graph.steps)):
        step = graph.steps[position]
        mine = [id(tensor) in growth.inside for tensor in step.inputs]
        if not any(mine):
            continue
        if not all(mine):
            return best, f"it meets other tensors at {step.operation.name!r}"
        linear = type(step.operation) in (*DENSE, *CONV)
        cut = linear and growth.is_cut(position)
        if cut and _can_exit(growth, step.operation):
            best = _chain(growth, step, prefix)
            if growth.kind == "bottleneck":
                return best, ""
        try:
            _follow(growth, step, linear, cut)
        except CannotGroupError as error:
            return best, str(error)
        growth.add(step, position)
    return best, "the model's output follows"


def _can_exit(growth: _Growth, layer: Any) -> bool:
    """Whether a layer that all paths reach may sum them: there must be two hidden layers."""
    main = [each for each in growth.maps if not each.gate]
    if cardinality_of(layer) > 1 or len(main) < 2:
        return False
    try:
        _check_trains_its_kernel(layer)
        check_penalties(layer, layer.get_config())
    except CannotGroupError:
        return False
    if growth.kind == "dense":
        return type(layer) in DENSE
    return type(layer) in CONV and kernel_of(layer) == (1, 1) and any(x.pixels > 1 for x in main)


def _follow(growth: _Growth, step: Step, linear: bool, cut: bool) -> None:
    """Take a step into the chain; raises where it cannot be done path by path."""
    layer = step.operation
    if linear:
        if cardinality_of(layer) > 1:
            raise CannotGroupError(f"{layer.name!r} is already grouped")
        if cut and (type(layer) in DENSE) != (growth.kind == "dense"):
            raise CannotGroupError(f"{layer.name!r}, a {type(layer).__name__}, follows")
        _check_map(step, shared=False)
        growth.maps.append(_map_of(growth, step, gate=not cut))
        return
    if isinstance(layer, BY_CHANNEL):
        raise CannotGroupError(f"{layer.name!r} behind it is already grouped, channel by channel")
    widened(layer, 2, False, [_doubled(tensor) for tensor in step.inputs])
    if not is_unchanged(layer):
        shapes = tuple(tuple(tensor.shape) for tensor in step.inputs)
        growth.between.append(Between(layer, shapes, growth.base(step)))


def _check_map(step: Step, shared: bool) -> None:
    """Raise if there is no layer that does for paths what this one does."""
    layer = step.operation
    _check_trains_its_kernel(layer)
    tensor = step.inputs[0] if shared else _doubled(step.inputs[0])
    widened(layer, 2, shared, [tensor])


def _check_trains_its_kernel(layer: Any) -> None:
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise CannotGroupError(f"{layer.name!r} is quantised, or has a low-rank addition")


def _doubled(tensor: Any) -> Any:
    if len(tensor.shape) < 2 or tensor.shape[-1] is None:
        raise CannotGroupError(f"a tensor of shape {tuple(tensor.shape)} has no known channels")
    return keras.KerasTensor((*tensor.shape[:-1], 2 * tensor.shape[-1]), tensor.dtype)


def _map_of(growth: _Growth, step: Step, gate: bool = False) -> Map:
    (x,), (y,) = step.inputs, step.outputs
    sides = y.shape[1:-1]
    positions = None if None in sides else math.prod(sides)
    pixels = math.prod(kernel_of(step.operation))
    base = growth.base(step)
    return Map(step.operation, pixels, x.shape[-1], base, y.shape[-1], positions, gate)


def _chain(growth: _Growth, step: Step, prefix: str) -> Chain:
    maps = (*growth.maps, _map_of(growth, step))
    names = [each.layer.name for each in maps]
    name = _common(names)
    return Chain(
        prefix + (name or f"{names[0]} to {names[-1]}"),
        growth.kind,
        maps,
        tuple(growth.between),
        prefix,
    )


def _common(names: Sequence[str]) -> str:
    """The words that all names begin with: conv2_block1 for conv2_block1_1_conv and so on."""
    words = zip(*(name.split("_") for name in names), strict=False)
    return "_".join(
        first for first, *rest in itertools.takewhile(lambda w: len(set(w)) == 1, words)
    )


def _why_no_chain(growth: _Growth, stop: str) -> str:
    main = [each for each in growth.maps if not each.gate]
    if growth.kind == "dense":
        if len(main) == 1:
            return f"not a chain: {stop}"
        if len(main) == 2:
            return "one hidden layer: paths of it side by side are only a wider layer"
    if growth.kind == "bottleneck" and len(main) > 1:
        return f"not a chain: no 1x1 convolution ends it after {main[-1].layer.name!r}: {stop}"
    return f"not a chain: {stop}"
