"""Ready modules and networks: fully connected, bottleneck block, ResNeXts."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ce_keras.checks import (
    boolean,
    brief,
    finite_number,
    instance,
    layer_widths,
    positive_int,
    real_values,
    sequence_of,
    text,
)
from ce_keras.geometry.modules import Design, Layer, Module, Network, Stack, Width, conv, dense

#: Algorithm 1's fit for the bottleneck block (Sec. 4.2).
BOTTLENECK_ALPHA = 1.60


def fully_connected(
    inputs: int,
    widths: Sequence[int],
    outputs: int = 1,
    *,
    bias: bool = False,
    alpha: float | None = None,
    name: str = "fully connected",
) -> Module:
    """Return a fully connected ReLU network with hidden layers of the given `widths` (Eq. 3).

    The paper scales a width vector by a ratio. Here width `n` of the module means hidden layers of
    `n / max(widths)` times `widths`, rounded. The sum of Eq. 9 runs over the hidden widths only:
    given the input, the first layer's units are independent normals, whatever the input's size.

    Args:
        inputs: size of the input.
        widths: hidden widths of the baseline, first to last.
        outputs: size of the output.
        bias: whether the layers have biases (parameters only; the law is for none).
        alpha: the law's constant. By default the theory's own, to first order in 1/width, for
            one output of a ReLU network in the NTK parameterisation.
        name: its name in reports.

    Raises:
        ValueError: for an empty or non-positive width, input or output size.

    >>> int(fully_connected(748, [500] * 5).params(1, 500))
    1374500
    """
    boolean("bias", bias)
    positive_int("inputs", inputs)
    positive_int("outputs", outputs)
    hidden = tuple(layer_widths("widths", widths))
    text("name", name)
    if alpha is not None:
        finite_number("alpha", alpha, above=0)
    path = functools.partial(_dense_path, hidden=hidden, inputs=inputs, outputs=outputs, bias=bias)
    stack = None if bias else functools.partial(_dense_stack, hidden=hidden, inputs=inputs)
    alpha = first_order_alpha(hidden) if alpha is None else alpha
    return Module(name, max(hidden), path, alpha, stack)


def first_order_alpha(widths: Sequence[float]) -> float:
    """Return the constant of the exponential law to first order in 1 / width.

    For a fully connected ReLU network in the NTK parameterisation, the exponent of E[K^2] / E[K]^2
    is the sum over the H hidden layers of alpha_k / n_k with
    alpha_k = 5 - 8 k (H + 1 - k) / (H + 1)^2. The constant is the mean of alpha_k, weighted by
    1 / n_k as in Eq. 9. For equal widths it is 5 - (4/3) (H + 2) / (H + 1).

    >>> [round(first_order_alpha([100.0] * depth), 2) for depth in (2, 5, 6)]
    [3.22, 3.44, 3.48]
    """
    depth = len(widths) + 1
    k = np.arange(1, depth)
    alphas = 5 - 8 * k * (depth - k) / depth**2
    return float(np.average(alphas, weights=1 / np.asarray(widths, float)))


def _dense_path(
    width: Width, hidden: Sequence[int], inputs: int, outputs: int, bias: bool
) -> list[Layer]:
    sizes = [inputs, *scaled_widths(width, hidden), outputs]
    return [
        dense(fan_in, fan_out, bias=bias, in_law=layer > 0)
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
    ]


def _dense_stack(width: Width, hidden: Sequence[int], inputs: int) -> Stack:
    return Stack(inputs, 1, scaled_widths(width, hidden))


def scaled_widths(
    width: Width, hidden: Sequence[int], reference: int | None = None
) -> list[np.ndarray]:
    """Return the hidden widths scaled by the paper's width ratio, `width / reference`, rounded.

    The reference is the widest hidden layer if not given.
    """
    real_values("width", width, above=0)
    hidden = sequence_of("hidden", hidden, positive_int)
    if not hidden:
        raise ValueError("hidden: got []; there must be a width")
    if reference is not None:
        positive_int("reference", reference)
    ratio = np.asarray(width) / (max(hidden) if reference is None else reference)
    return [np.maximum(1, np.rint(ratio * size)).astype(np.int64) for size in hidden]


def bottleneck(
    channels: int = 256, width: int = 64, *, positions: int = 1, alpha: float = BOTTLENECK_ALPHA
) -> Module:
    """Return the residual bottleneck block of Fig. 5.

    Its 1x1, 3x3 and 1x1 convolutions lead from `channels` to n, n and `channels` again.

    Args:
        channels: input and output channels of the block.
        width: the baseline's width.
        positions: pixels the block is applied to (scales FLOPs).
        alpha: the law's constant; the paper's fit, for 256 channels, unless given.

    >>> float(round(bottleneck().inverse_fan_in(10), 6))
    0.115017
    """
    finite_number("alpha", alpha, above=0)
    for name, size in {"channels": channels, "width": width, "positions": positions}.items():
        positive_int(name, size)
    block = _Block(channels, channels, positions, positions)
    path = functools.partial(_bottleneck_path, block=block, norm=False)
    stack = functools.partial(_bottleneck_stack, channels=channels)
    return Module(f"bottleneck block of {channels} channels", width, path, alpha, stack)


def _bottleneck_stack(n: Width, channels: int) -> Stack:
    return Stack(channels, 9, [n, n])


class _Block(NamedTuple):
    """Channels and output pixels of a bottleneck block; its width is `factor` times the first's."""

    inputs: int
    outputs: int
    positions_in: int
    positions_out: int
    factor: int = 1


def _bottleneck_path(n: Width, block: _Block, norm: bool) -> list[Layer]:
    return [
        conv(block.inputs, n, positions=block.positions_in, norm=norm),
        conv(n, n, kernel=3, positions=block.positions_out, norm=norm),
        conv(n, block.outputs, positions=block.positions_out),
    ]


class ResNeXt(NamedTuple):
    """The shape of a ResNeXt, apart from its design.

    Attributes:
        blocks: bottleneck blocks in each stage. A stage has twice the width and the channels of
            the one before, at half the resolution.
        width: the baseline's width in the first stage.
        stem: channels of the first convolution.
        filters: output channels of the first stage.
        stem_kernel: its kernel's side.
        stem_strides: its strides.
        pool: whether a 3x3 max pool of stride 2 follows it.
        input_shape: height, width and channels of the images that FLOPs are counted for.
        classes: outputs of the classifier.
    """

    blocks: tuple[int, ...]
    width: int
    stem: int = 64
    filters: int = 256
    stem_kernel: int = 7
    stem_strides: int = 2
    pool: bool = True
    input_shape: tuple[int, int, int] = (224, 224, 3)
    classes: int = 1000


#: The paper's networks (Sec. 4.2), a deeper one, and small ones that two cores can train.
RESNEXTS = {
    "resnext11": ResNeXt((1, 1, 1), 64, 32, 128, 3, 2, True, (28, 28, 1), 10),
    "resnext11c": ResNeXt((1, 1, 1), 64, 64, 128, 3, 1, True, (32, 32, 3), 10),
    "resnext29": ResNeXt((3, 3, 3), 128, 64, 256, 3, 1, False, (32, 32, 3), 10),
    "resnext38": ResNeXt((3, 3, 3, 3), 128, 64, 256, 3, 1, False, (64, 64, 3), 1000),
    "resnext50": ResNeXt((3, 4, 6, 3), 64),
    "resnext101": ResNeXt((3, 4, 23, 3), 64),
    "resnext152": ResNeXt((3, 8, 36, 3), 64),
}


def resnext(shape: str | ResNeXt, width: int | None = None) -> Network:
    """Return a whole ResNeXt, layer by layer, as `ce_keras.zoo` builds it.

    Args:
        shape: a name in `RESNEXTS`, or a :class:`ResNeXt`.
        width: the baseline's width; the shape's own if not given.

    Raises:
        ValueError: for an unknown name.

    >>> resnext("resnext50").params(32, 4)
    25028904
    """
    name = shape if isinstance(shape, str) else "resnext"
    whole = _lookup(shape, RESNEXTS, "shape") if isinstance(shape, str) else _checked_shape(shape)
    fixed, blocks = _resnext_layers(whole)
    paths = functools.partial(_block_paths, blocks=blocks)
    first = whole.width if width is None else positive_int("width", width)
    factors = [2**stage for stage in range(len(whole.blocks))]
    stages = [bottleneck(whole.filters * factor, first * factor) for factor in factors]
    return Network(name, stages[0], paths, fixed, stages)


def _checked_shape(shape: Any) -> ResNeXt:
    """Return the shape of a ResNeXt, whose sizes are whole numbers of 1 or more."""
    instance("shape", shape, ResNeXt, f"a ResNeXt, or one of {', '.join(RESNEXTS)}")
    for field, sizes in {"blocks": shape.blocks, "input_shape": shape.input_shape}.items():
        found = sequence_of(f"shape.{field}", sizes, positive_int)
        if not found or (field == "input_shape" and len(found) != 3):
            raise ValueError(f"shape.{field}: got {brief(sizes)}; it must have every size")
    for field in ("width", "stem", "filters", "stem_kernel", "stem_strides", "classes"):
        positive_int(f"shape.{field}", getattr(shape, field))
    boolean("shape.pool", shape.pool)
    return shape


def _resnext_layers(shape: ResNeXt) -> tuple[list[Layer], list[_Block]]:
    """Return the layers that no design changes, and the bottleneck blocks."""
    *size, channels = shape.input_shape

    def stride(step: int) -> int:
        size[:] = [-(-side // step) for side in size]
        return math.prod(size)

    positions = stride(shape.stem_strides)
    fixed = [conv(channels, shape.stem, shape.stem_kernel, positions=positions, norm=True)]
    if shape.pool:
        positions = stride(2)
    blocks = []
    channels = shape.stem
    for stage, count in enumerate(shape.blocks):
        outputs = shape.filters * 2**stage
        for index in range(count):
            before = positions
            if stage > 0 and index == 0:
                positions = stride(2)
            # The normalisation after the last 1x1 convolution is of the sum of all paths.
            fixed.append(Layer(0, outputs, norm=True))
            if channels != outputs:
                fixed.append(conv(channels, outputs, positions=positions, norm=True))
            blocks.append(_Block(channels, outputs, before, positions, 2**stage))
            channels = outputs
    fixed.append(dense(channels, shape.classes, bias=True))
    return fixed, blocks


def _block_paths(n: Width, blocks: Sequence[_Block]) -> list[Layer]:
    """Return one path of every block."""
    return [layer for each in blocks for layer in _bottleneck_path(each.factor * n, each, True)]


def _figure_3(width: int | None = None) -> Module:
    """Return Fig. 3's network: the printed curve has L = 6 weight matrices and alpha = 3.07."""
    size = 500 if width is None else width
    stack = functools.partial(_dense_stack, hidden=[1] * 5, inputs=748)
    return Module("figure3", size, _figure_3_path, alpha=3.07, stack=stack)


def _figure_3_path(n: Width) -> list[Layer]:
    path = _dense_path(n, hidden=[1] * 5, inputs=748, outputs=1, bias=False)
    # The figure's law has a term 1/n for each of the six matrices, but only five have n inputs.
    # A layer without outputs, and so without parameters, adds the sixth term.
    return [*path, dense(n, 0)]


#: Baselines by name, each a function of an optional width.
BASELINES: dict[str, Callable[[int | None], Module | Network]] = {
    **{name: functools.partial(resnext, name) for name in RESNEXTS},
    "figure3": _figure_3,
}


def baseline(name: str) -> Module | Network:
    """Return a baseline by name: `"resnext29"`, or with its width, `"resnext29-1x226d"`.

    The zoo's names, which have an underscore, are accepted too.

    Raises:
        ValueError: for an unknown name, or a design that is not a single path.

    >>> baseline("resnext29-1x226d").width
    226
    """
    text("name", name)
    family, dash, design = name.replace("_", "-").partition("-")
    build = _lookup(family, BASELINES, "baseline")
    if not dash:
        return build(None)
    try:
        cardinality, width = Design.parse(design)
    except ValueError as error:
        raise ValueError(f"baseline: {error}") from None
    if cardinality != 1:
        raise ValueError(
            f"baseline: got {name!r}; a baseline is one path, such as '{family}-1x{width}d'"
        )
    return build(width)


def _lookup(name: str, known: dict[str, Any], argument: str) -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(
        f"{argument}: unknown name {brief(name)}{hint} Known names: {', '.join(known)}"
    )
