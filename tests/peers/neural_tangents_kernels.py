"""Kernels by neural-tangents, in the environment that `make peers` installs.

Reads the file named first, weights and inputs by name, and writes to the second the kernel of the
networks that `tests/ntk/test_peers.py` builds in Keras, for all choices of axes there.
"""

import json
import sys

import jax
import neural_tangents as nt
import numpy as np

jax.config.update("jax_enable_x64", True)


def dense(weights, x):
    """Three dense layers."""
    one, bias_one, two, bias_two, three, bias_three = weights
    x = jax.nn.relu(x @ one + bias_one)
    x = jax.nn.tanh(x @ two + bias_two)
    return x @ three + bias_three


def convolutional(weights, x):
    """A strided convolution, a grouped one, the mean over pixels and a classifier."""
    one, bias_one, two, bias_two, three, bias_three = weights
    x = jax.nn.relu(convolution(x, one, (2, 2), 1) + bias_one)
    x = jax.nn.relu(convolution(x, two, (1, 1), 2) + bias_two)
    return x.mean(axis=(1, 2)) @ three + bias_three


def convolution(x, kernel, strides, groups):
    """As Keras has it: channels last, no padding."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def infinite(depth):
    """The kernel of infinitely wide ReLU layers, whose weights have variance 2 / fan_in."""
    hidden = [nt.stax.Dense(1, W_std=2**0.5), nt.stax.Relu()] * (depth - 1)
    *_, kernel = nt.stax.serial(*hidden, nt.stax.Dense(1))
    return kernel


def main():
    """Compute every kernel that is asked for."""
    given = np.load(sys.argv[1])
    network = {"dense": dense, "convolutional": convolutional}[str(given["network"])]
    weights = [given[f"weight_{index}"] for index in range(6)]
    kernels = {}
    for axes in json.loads(str(given["axes"])):
        kernel = nt.empirical_ntk_fn(
            network,
            trace_axes=tuple(axes["trace_axes"]),
            diagonal_axes=tuple(axes["diagonal_axes"]),
        )
        x2 = None if 0 in axes["diagonal_axes"] else given["x2"]
        kernels[json.dumps(axes)] = kernel(given["x1"], x2, weights)
    if network is dense:
        kernels["infinite"] = infinite(4)(given["x1"], given["x2"], "ntk")
    np.savez(sys.argv[2], **kernels)


if __name__ == "__main__":
    main()
