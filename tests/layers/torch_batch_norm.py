"""Fused batch normalisation beside Keras' own on PyTorch. Run by test_batch_norm in a new process.

Raises `AssertionError` where an output, a moving statistic or a gradient differs.
"""

import itertools

import keras
import numpy as np

from ce_keras.layers import FusedBatchNormalization

#: Rounding of each policy's computation: machine epsilons of the output's type.
ROUNDING = {"float32": 2**-23, "mixed_bfloat16": 2**-7, "mixed_float16": 2**-10}
OPTIONS = ({}, {"scale": False}, {"center": False})
SHAPES = (((4, 5, 6, 7), -1), ((4, 7, 5, 6), 1), ((1, 1, 1, 7), -1), ((1, 7, 1, 1), 1))


def main() -> None:
    """Compare every policy, shape and option."""
    assert keras.backend.backend() == "torch"
    fused = 0
    for policy, (shape, axis), options in itertools.product(ROUNDING, SHAPES, OPTIONS):
        passes, names = [], []
        for kind in (FusedBatchNormalization, keras.layers.BatchNormalization):
            layer = kind(axis=axis, momentum=0.9, epsilon=1e-5, dtype=policy, **options)
            values, operation = training_pass(layer, shape)
            passes.append(values)
            names.append(operation)
        fused += names[0] != names[1]
        for name, ours in passes[0].items():
            theirs = passes[1][name]
            # A sum of 120 terms in another order, then one rounding.
            allowed = 64 * ROUNDING[policy] * max(1e-2, np.abs(theirs).max())
            worst = np.abs(ours - theirs).max()
            assert worst <= allowed, (policy, shape, axis, options, name, worst, allowed)
            assert np.isfinite(ours).all()
    # One value a channel is left to Keras; everything else is PyTorch's own operation.
    assert fused == len(ROUNDING) * len(OPTIONS) * 2, fused


def training_pass(layer, shape):
    """Return outputs, moving statistics and gradients, and the last operation's name."""
    import torch

    rng = np.random.default_rng(0)
    x, upstream = (rng.normal(mean, 2, size=shape).astype("float32") for mean in (3, 0))
    layer.build(shape)
    for weight in layer.trainable_variables:
        weight.assign(np.linspace(0.5, 2, weight.shape[0]))
    x = torch.tensor(x, requires_grad=True)
    y = layer(x, training=True)
    trained = {weight.name: weight.value for weight in layer.trainable_variables}
    gradients = torch.autograd.grad(
        y, [x, *trained.values()], torch.tensor(upstream, dtype=y.dtype), allow_unused=False
    )
    tensors = {"outputs": y, **dict(zip(["inputs", *trained], gradients, strict=True))}
    tensors |= {weight.name: weight.value for weight in layer.non_trainable_variables}
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}, kinds(y)


def kinds(tensor):
    """Return whether PyTorch's fused operation is in the graph that computed a tensor."""
    found, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.add(type(node).__name__)
            waiting += [each for each, _ in node.next_functions]
    return any("BatchNorm" in name for name in found)


if __name__ == "__main__":
    main()
