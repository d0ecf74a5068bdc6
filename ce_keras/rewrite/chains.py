"""Find what can be ensembled in a Keras model: the modules of the paper, as chains of layers.

A chain is an *entry*, one or more *hidden* layers behind it and an *exit*, such that all that the
entry computes reaches the model's output through the exit alone. Then whatever lies between can be
computed path by path, and the exit sums the paths.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras

from ce_keras.layers.functional import Applied, calls_of, model_inside
from ce_keras.layers.grouping import check_penalties, is_unchanged, widened
from ce_keras.layers.layer_table import BY_CHANNEL, CONV, DENSE, CannotGroupError
from ce_keras.rewrite.graph import Call, Graph, layers_of, models_in


class LinearLayer(NamedTuple):
    """A linear layer of a chain.

    Attributes:
        layer: the Keras layer.
        pixels: number of positions in its kernel; 1 for a dense layer.
        inputs: channels it reads.
        base: channels of the chain's layer before, of which the inputs are a multiple: behind a
            `Flatten` it reads all pixels of each.
        outputs: channels it gives.
        positions: places that a call applies it at; `None` if that is not known.
        gate: whether it lies beside the chain, as in squeeze-and-excite: the law leaves it out.
        all_positions: places that all calls of the whole model apply it at, if they are known.
    """

    layer: Any
    pixels: int
    inputs: int
    base: int
    outputs: int
    positions: int | None
    gate: bool = False
    all_positions: int | None = None


class IntermediateLayer(NamedTuple):
    """A layer between linear layers that is another one for paths.

    Attributes:
        layer: the Keras layer.
        channels: of its first input.
        shapes: of its inputs.
        base: channels of the linear layer before.
    """

    layer: Any
    channels: int
    shapes: tuple[tuple[int | None, ...], ...]
    base: int


@dataclass(frozen=True, eq=False)
class Chain:
    """A module that can be ensembled.

    Attributes:
        name: the common beginning of its layers' names.
        kind: `"bottleneck"` (convolutions 1x1, k x k, 1x1) or `"dense"`.
        linear: its linear layers, first to last; the last is the exit.
        intermediate: the other layers that have to know of paths.
        prefix: of the layers' names, where the chain lies in a model within the model.
        activations: of every tensor inside and every call, its elements for one channel of the
            linear layer before, and how many channels that has; `None` if a size is not known.
        calls: how often the model calls it for one example, every step of a `TimeDistributed`
            counted; where their number is not known, how often the graph around it does.
    """

    name: str
    kind: str
    linear: tuple[LinearLayer, ...]
    intermediate: tuple[IntermediateLayer, ...]
    prefix: str = ""
    activations: tuple[tuple[int, int], ...] | None = None
    calls: int = 1

    @property
    def in_law(self) -> list[LinearLayer]:
        """The linear layers, gates left out."""
        return [each for each in self.linear if not each.gate]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the hidden layers, first to last, gates left out."""
        return tuple(each.outputs for each in self.linear[:-1] if not each.gate)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the linear layers."""
        return tuple(self.prefix + each.layer.name for each in self.linear)


def find_chains(model: keras.Model) -> tuple[list[Chain], dict[str, tuple[str, str]]]:
    """Return all chains of a functional model, and why its other matrices are in none.

    Returns:
        The chains, first to last; and by layer's name, the layer's class and the reason.
    """
    graphs = [(prefix, inner, Graph(inner)) for prefix, inner in models_in(model)]
    uses = Counter(
        id(layer)
        for _, _, graph in graphs
        for call in graph.calls
        for layer in layers_of(call.operation)
    )
    chains: list[Chain] = []
    reasons: dict[int, str] = {}
    for prefix, _, graph in graphs:
        chains += _chains_of(graph, prefix, uses, reasons)
    chains = _told_apart(_with_all_calls(chains, model))
    taken = {id(each.layer) for chain in chains for each in chain.linear}
    skipped = {}
    for prefix, inner, _ in graphs:
        for layer in inner.layers:
            if id(layer) not in taken and model_inside(layer) is None and _has_matrix(layer):
                reason = reasons.get(id(layer)) or _why_in_no_chain(layer)
                skipped[prefix + layer.name] = (type(layer).__name__, reason)
    return chains, skipped


def _with_all_calls(chains: Sequence[Chain], model: keras.Model) -> list[Chain]:
    """Return the chains, whose calls are those of their own models, with the whole model's."""
    by_operation: dict[int, list[Applied]] = {}
    for call in calls_of(model):
        by_operation.setdefault(id(call.operation), []).append(call)

    def positions(each: LinearLayer) -> int | None:
        sizes = [(c.times, *c.outputs[0].shape[1:-1]) for c in by_operation[id(each.layer)]]
        return None if any(None in size for size in sizes) else sum(map(math.prod, sizes))

    def completed(chain: Chain) -> Chain:
        if any(id(each.layer) not in by_operation for each in chain.linear):
            return chain  # It is in a model whose `call` is the user's own.
        times = [call.times for call in by_operation[id(chain.linear[0].layer)]]
        linear = tuple(each._replace(all_positions=positions(each)) for each in chain.linear)
        if None in times:
            return dataclasses.replace(chain, linear=linear, activations=None)
        calls = sum(each for each in times if each is not None)
        held = chain.activations
        if held is not None:
            held = tuple((calls // chain.calls * elements, base) for elements, base in held)
        return dataclasses.replace(chain, linear=linear, activations=held, calls=calls)

    return [completed(chain) for chain in chains]


def _told_apart(chains: Sequence[Chain]) -> list[Chain]:
    """Return the chains, each of its own name: Keras' own layer names begin alike in all."""
    names = Counter(chain.name for chain in chains)
    return [
        dataclasses.replace(chain, name=f"{chain.layers[0]} to {chain.layers[-1]}")
        if names[chain.name] > 1
        else chain
        for chain in chains
    ]


def kernel_of(layer: Any) -> tuple[int, ...]:
    """Return the sides of a layer's kernel, in pixels."""
    return tuple(getattr(layer, "kernel_size", (1,)))


# All chains of one graph -------------------------------------------------------------------------


def _chains_of(
    graph: Graph, prefix: str, uses: Counter[int], reasons: dict[int, str]
) -> list[Chain]:
    starts: dict[int, list[int]] = {}
    for position, call in enumerate(graph.calls):
        if _is_entry(call.operation):
            starts.setdefault(id(call.operation), []).append(position)
    chains: list[Chain] = []
    taken: set[int] = set()
    for entry, positions in starts.items():
        if entry in taken:
            continue
        try:
            grown = [_grow(graph, position, prefix) for position in positions]
            chain = _same_everywhere(grown, uses, taken)
        except CannotGroupError as error:
            reasons[entry] = str(error)
            continue
        sizes = [other.activations for other in grown]
        held = [each for each in sizes if each is not None]
        chain = dataclasses.replace(
            chain,
            calls=len(grown),
            activations=tuple(itertools.chain(*held)) if len(held) == len(sizes) else None,
        )
        chains.append(chain)
        taken.update(id(each.layer) for each in chain.linear)
    return chains


def _is_entry(layer: Any) -> bool:
    if _cardinality_of(layer) > 1:
        return False
    return type(layer) in DENSE or (type(layer) in CONV and kernel_of(layer) == (1, 1))


def _same_everywhere(grown: Sequence[Chain], uses: Counter[int], taken: set[int]) -> Chain:
    """Return the one chain of a shared entry, all of whose layers must be shared in the same way.

    Raises:
        CannotGroupError: if a layer of the chain is also used elsewhere.
    """
    chain = grown[0]
    rows = [[each.layer for each in other.linear] for other in grown]
    if any(row != rows[0] for row in rows[1:]):
        raise CannotGroupError("it is shared, and not followed by the same layers everywhere")
    intermediate = [each for other in grown for each in other.intermediate]
    members = [*itertools.chain(*rows), *(each.layer for each in intermediate)]
    own_uses = Counter(map(id, members))
    for layer in members:
        if uses[id(layer)] != own_uses[id(layer)] or id(layer) in taken:
            raise CannotGroupError(f"{layer.name!r} is also used outside the chain")
    # What lies between the shared layers may be another layer at every use.
    distinct: dict[int, IntermediateLayer] = {}
    for each in intermediate:
        if distinct.setdefault(id(each.layer), each) != each:
            raise CannotGroupError(f"{each.layer.name!r} is applied to several shapes")
    return dataclasses.replace(chain, intermediate=tuple(distinct.values()))


_REASONS: dict[type, str] = {
    keras.layers.TimeDistributed: "it applies one layer: make a model of the chain, and apply that "
    "at every time step",
    keras.layers.MultiHeadAttention: "its heads are paths already",
}


def _why_in_no_chain(layer: Any) -> str:
    """Return why a layer that begins no chain is in none."""
    if isinstance(layer, keras.Model):
        return (
            "subclassed: Keras does not know its layers' order; build it with "
            "keras.Model(inputs, model.call(inputs))"
        )
    for kind, reason in _REASONS.items():
        if isinstance(layer, kind):
            return reason
    if isinstance(layer, BY_CHANNEL) or _cardinality_of(layer) > 1:
        return "already grouped"
    if type(layer) in CONV:
        size = "x".join(map(str, kernel_of(layer)))
        return f"not in a chain of 1x1, k x k and 1x1 convolutions: its kernel is {size}"
    if isinstance(layer, (*DENSE, *CONV)):
        return "subclassed: it may compute something else than its parent"
    return f"there is no grouped form of a {type(layer).__name__}"


def _has_matrix(layer: Any) -> bool:
    return any(len(weight.shape) > 1 for weight in layer.variables)


# One chain, from its entry -----------------------------------------------------------------------


class _Growth:
    """A chain while it is followed through the graph from its entry."""

    def __init__(self, graph: Graph, kind: str) -> None:
        self.graph = graph
        self.kind = kind
        self.linear: list[LinearLayer] = []
        self.intermediate: list[IntermediateLayer] = []
        self.inside: dict[int, Any] = {}
        self.bases: dict[int, int] = {}

    @property
    def in_law(self) -> list[LinearLayer]:
        return [each for each in self.linear if not each.gate]

    def activations(self) -> tuple[tuple[int, int], ...] | None:
        """Return elements for a channel of the linear layer before, and the channels of that."""
        found = []
        for tensor in self.inside.values():
            if None in tensor.shape[1:]:
                return None
            base = self.bases[id(tensor)]
            found.append((math.prod(tensor.shape[1:]) // base, base))
        return tuple(found)

    def is_cut(self, position: int) -> bool:
        """Return whether all that the entry computed goes through this call."""
        unread = [
            id(tensor)
            for tensor in self.inside.values()
            if any(at >= position or at == -1 for at in self.graph.readers.get(id(tensor), []))
        ]
        return len(unread) == 1 and self.graph.readers.get(unread[0]) == [position]

    def add(self, call: Call) -> None:
        """Take the call's outputs into the chain."""
        self.inside.update((id(tensor), tensor) for tensor in call.outputs)
        linear = type(call.operation) in (*DENSE, *CONV)
        base = call.outputs[0].shape[-1] if linear else self.base(call)
        self.bases.update((id(tensor), base) for tensor in call.outputs)

    def base(self, call: Call) -> int:
        """Return the outputs of the linear layer that a call's input goes back to."""
        tensor = call.inputs[0]
        return self.bases.get(id(tensor), tensor.shape[-1])

    def linear_layer(self, call: Call, gate: bool = False) -> LinearLayer:
        """Describe the linear layer that is called."""
        layer, (x,), (y,) = call
        sides = y.shape[1:-1]
        positions = None if None in sides else math.prod(sides)
        pixels = math.prod(kernel_of(layer))
        return LinearLayer(
            layer, pixels, x.shape[-1], self.base(call), y.shape[-1], positions, gate
        )


def _grow(graph: Graph, start: int, prefix: str) -> Chain:
    """Return the chain that begins with a call.

    Raises:
        CannotGroupError: if there is none, saying why.
    """
    entry = graph.calls[start]
    growth = _Growth(graph, "dense" if type(entry.operation) in DENSE else "bottleneck")
    if graph.readers.get(id(entry.outputs[0])) == [-1]:
        raise CannotGroupError("it gives the model's output: no hidden layer")
    _check_linear(entry, shared=True)
    growth.linear.append(growth.linear_layer(entry))
    growth.add(entry)
    best, stop = _followed(growth, start, prefix)
    if best is None:
        raise CannotGroupError(_why_no_chain(growth, stop))
    if min(best.widths) < 2:
        raise CannotGroupError(f"too narrow: hidden widths {best.widths}")
    return best


def _followed(growth: _Growth, start: int, prefix: str) -> tuple[Chain | None, str]:
    """Return the longest dense chain, or the first of convolutions; and what stopped it."""
    best: Chain | None = None
    for position, call in enumerate(growth.graph.calls[start + 1 :], start + 1):
        inside = [id(tensor) in growth.inside for tensor in call.inputs]
        if not any(inside):
            continue
        if not all(inside):
            return best, f"it meets other tensors at {call.operation.name!r}"
        linear = type(call.operation) in (*DENSE, *CONV)
        cut = linear and growth.is_cut(position)
        if cut and _can_exit(growth, call.operation):
            best = _chain(growth, call, prefix)
            if growth.kind == "bottleneck":
                return best, ""
        try:
            _follow(growth, call, linear, cut)
        except CannotGroupError as error:
            return best, str(error)
        growth.add(call)
    return best, "the model's output follows"


def _can_exit(growth: _Growth, layer: Any) -> bool:
    """Return whether a layer that all paths reach may sum them: behind two hidden layers."""
    if _cardinality_of(layer) > 1 or len(growth.in_law) < 2:
        return False
    try:
        _check_trains_its_kernel(layer)
        check_penalties(layer, layer.get_config())
    except CannotGroupError:
        return False
    if growth.kind == "dense":
        return type(layer) in DENSE
    has_kernel = any(each.pixels > 1 for each in growth.in_law)
    return type(layer) in CONV and kernel_of(layer) == (1, 1) and has_kernel


def _follow(growth: _Growth, call: Call, linear: bool, cut: bool) -> None:
    """Take a call into the chain; raise where it cannot be done path by path."""
    layer = call.operation
    if linear:
        if _cardinality_of(layer) > 1:
            raise CannotGroupError(f"{layer.name!r} is already grouped")
        if cut and (type(layer) in DENSE) != (growth.kind == "dense"):
            raise CannotGroupError(f"{layer.name!r}, a {type(layer).__name__}, follows")
        _check_linear(call, shared=False)
        growth.linear.append(growth.linear_layer(call, gate=not cut))
        return
    if isinstance(layer, BY_CHANNEL):
        raise CannotGroupError(f"{layer.name!r} behind it is already grouped, channel by channel")
    widened(layer, 2, False, [_doubled(tensor) for tensor in call.inputs])
    if not is_unchanged(layer):
        shapes = tuple(tuple(tensor.shape) for tensor in call.inputs)
        base = growth.base(call)
        growth.intermediate.append(IntermediateLayer(layer, shapes[0][-1], shapes, base))


def _cardinality_of(layer: Any) -> int:
    return max(getattr(layer, "groups", 1), getattr(layer, "cardinality", 1))


def _check_linear(call: Call, shared: bool) -> None:
    """Raise if there is no layer that does for paths what this one does."""
    _check_trains_its_kernel(call.operation)
    tensor = call.inputs[0] if shared else _doubled(call.inputs[0])
    widened(call.operation, 2, shared, [tensor])


def _check_trains_its_kernel(layer: Any) -> None:
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise CannotGroupError(f"{layer.name!r} is quantised, or has a low-rank addition")


def _doubled(tensor: Any) -> Any:
    if len(tensor.shape) < 2 or tensor.shape[-1] is None:
        raise CannotGroupError(f"a tensor of shape {tuple(tensor.shape)} has no known channels")
    return keras.KerasTensor((*tensor.shape[:-1], 2 * tensor.shape[-1]), tensor.dtype)


def _chain(growth: _Growth, call: Call, prefix: str) -> Chain:
    linear = (*growth.linear, growth.linear_layer(call))
    names = [each.layer.name for each in linear]
    # conv2_block1 for conv2_block1_1_conv and so on.
    words = zip(*(name.split("_") for name in names), strict=False)
    alike = itertools.takewhile(lambda word: len(set(word)) == 1, words)
    name = "_".join(word for word, *_ in alike) or f"{names[0]} to {names[-1]}"
    return Chain(
        prefix + name,
        growth.kind,
        linear,
        tuple(growth.intermediate),
        prefix,
        growth.activations(),
    )


def _why_no_chain(growth: _Growth, stop: str) -> str:
    last, count = growth.in_law[-1], len(growth.in_law)
    if growth.kind == "dense" and count == 2:
        return "one hidden layer: paths of it side by side are only a wider layer"
    if growth.kind == "bottleneck" and count > 1:
        return f"not a chain: no 1x1 convolution ends it after {last.layer.name!r}: {stop}"
    return f"not a chain: {stop}"
