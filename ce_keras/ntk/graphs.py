"""TensorFlow functions as graphs, and which of them are worth compiling."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# Of graphs of these alone XLA makes faster code than TensorFlow runs; of convolutions on a CPU, far
# slower.
_COMPILED = frozenset(
    re.findall(
        r"\w+",
        """
        AddN AddV2 BatchMatMulV2 BiasAdd BiasAddGrad Cast ConcatV2 Const Einsum Elu EluGrad Erf Erfc
        Exp ExpandDims Fill FloorDiv GatherV2 Greater GreaterEqual Identity InvertPermutation
        LeakyRelu LeakyReluGrad Less LessEqual Log Log1p LogSoftmax MatMul Maximum Mean Minimum Mul
        Neg NoOp Pack Placeholder PlaceholderWithDefault Pow Range ReadVariableOp RealDiv Relu
        ReluGrad Reshape Rsqrt RsqrtGrad Select SelectV2 Selu SeluGrad Sigmoid SigmoidGrad Slice
        Softmax Softplus SoftplusGrad Sqrt SqrtGrad Square SquaredDifference Squeeze StopGradient
        StridedSlice Sub Sum Tanh TanhGrad Tile Transpose UnsortedSegmentSum ZerosLike
        """,
    )
)


def traced(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    """The function of tensors of these shapes as a graph."""
    return tf.function(function, autograph=False).get_concrete_function(*specs)


def compiled(graph: Any, specs: Sequence[tf.TensorSpec]) -> Any:
    """The graph as XLA compiles it, where that pays; otherwise itself.

    It does not pay where the order of operations matters, which XLA does not keep: for a graph
    that is arranged to hold little at a time.
    """
    own = {op.type for op in graph.graph.get_operations()} <= _COMPILED
    # Numbers that are no indices: XLA reads rows that are not there without a word.
    if not own or not all(spec.dtype.is_floating for spec in specs):
        return graph
    return tf.function(graph, autograph=False, jit_compile=True).get_concrete_function(*specs)
