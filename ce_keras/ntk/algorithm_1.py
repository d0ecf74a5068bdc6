"""Algorithm 1 as printed: a Keras network for every draw, its kernel by `tf.GradientTape`.

Slow, and kept so: it is what the samplers are held against.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ce_keras.geometry import Stack
from ce_keras.layers import CollegialConv2D


def stack_model(stack: Stack, seed: int | None = None) -> keras.Model:
    """A stack as a Keras network of one path, in the NTK parameterisation.

    The positions of the first layer are a row of pixels, and the second layer is a convolution
    over all of them.

    Args:
        stack: from `Module.stack`.
        seed: for reproducible weights.

    Returns:
        A model from `(batch, positions, 1, inputs)` to `(batch, 1)`.

    >>> stack_model(Stack(inputs=5, positions=9, widths=[3, 4])).output_shape
    (None, 1)
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(len(stack.widths) + 1))
    model = keras.Sequential([keras.Input((stack.positions, 1, stack.inputs))])
    for layer, width in enumerate([*stack.widths, 1]):
        last = layer == len(stack.widths)
        model.add(
            CollegialConv2D(
                int(width),
                (stack.positions, 1) if layer == 1 else 1,
                use_bias=False,
                activation=None if last else "relu",
                parameterization="ntk",
                gain=1.0 if last else 2.0,
                kernel_initializer=keras.initializers.RandomNormal(
                    stddev=1.0, seed=int(next(seeds) >> 1)
                ),
            )
        )
    model.add(keras.layers.Flatten())
    return model


def tape_kernels(stack: Stack, x: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Kernels of freshly built networks, one entry of each.

    Args:
        stack: from `Module.stack`.
        x: one or two inputs, `(p, positions, inputs)`.
        draws: how many networks.
        rng: where their seeds come from.

    Returns:
        K(x[0], x[-1]) of each network, shape `(draws,)`.
    """
    import tensorflow as tf

    images = [tf.constant(image[None, :, None], tf.float32) for image in x]
    kernels = np.empty(draws)
    for draw in range(draws):
        model = stack_model(stack, int(rng.integers(2**31)))
        gradients = [_gradient(model, image) for image in images]
        pairs = zip(gradients[0], gradients[-1], strict=True)
        kernels[draw] = sum(float(tf.reduce_sum(a * b)) for a, b in pairs)
        keras.backend.clear_session()
    return kernels


def _gradient(model: keras.Model, image: Any) -> list[Any]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        output = model(image)[0, 0]
    return tape.gradient(output, [weight.value for weight in model.trainable_weights])
