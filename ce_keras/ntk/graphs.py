"""TensorFlow functions as graphs, by whichever of its two ways of running them is faster."""

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


def graph_of(function: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Callable[..., Any]:
    """The function for tensors of these shapes: compiled by XLA where that pays."""
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    if not {op.type for op in traced.graph.get_operations()} <= _COMPILED:
        return traced
    return tf.function(traced, autograph=False, jit_compile=True).get_concrete_function(*specs)
