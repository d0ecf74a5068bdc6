"""TensorFlow functions as graphs, and which of them are worth compiling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# Of graphs of these alone XLA makes faster code than TensorFlow runs; of convolutions on a CPU, far
# slower.
_COMPILED = frozenset(
    """
    AddN AddV2 BatchMatMulV2 BiasAdd BiasAddGrad Cast ConcatV2 Const Einsum Elu EluGrad Erf Erfc
    Exp ExpandDims Fill FloorDiv GatherV2 Greater GreaterEqual Identity InvertPermutation
    LeakyRelu LeakyReluGrad Less LessEqual Log Log1p LogSoftmax MatMul Maximum Mean Minimum Mul
    Neg NoOp Pack Placeholder PlaceholderWithDefault Pow Range ReadVariableOp RealDiv Relu
    ReluGrad Reshape Roll Rsqrt RsqrtGrad Select SelectV2 Selu SeluGrad Sigmoid SigmoidGrad
    Slice Softmax Softplus SoftplusGrad Sqrt SqrtGrad Square SquaredDifference Squeeze
    StopGradient StridedSlice Sub Sum Tanh TanhGrad Tile Transpose Unpack UnsortedSegmentSum
    ZerosLike
    """.split()  # noqa: SIM905
)

# Numbers that a graph gives. One for more is arranged to hold few at a time, in an order of
# operations that XLA does not keep; and what it gains there is little.
_MOST_COMPILED = 2**18


def traced(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    """The function of tensors of these shapes as a graph."""
    return tf.function(function, autograph=False).get_concrete_function(*specs)


def compiled(graph: Any, specs: Sequence[tf.TensorSpec]) -> Any:
    """The graph, compiled by XLA, or itself where that is better."""
    known = {op.type for op in graph.graph.get_operations()} <= _COMPILED
    small = math.prod(graph.structured_outputs.shape) <= _MOST_COMPILED
    # No indices among the inputs: XLA reads rows that are not there without a word.
    if not (known and small and all(spec.dtype.is_floating for spec in specs)):
        return graph
    return tf.function(graph, autograph=False, jit_compile=True).get_concrete_function(*specs)
