"""The fully connected collegial ensemble of the paper's ablation (Sec. 4.1)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
from keras import layers

from ce_keras import geometry
from ce_keras.algorithm2 import solve
from ce_keras.checks import brief, checked_seed, one_of, positive_int, sequence_of
from ce_keras.geometry import Design
from ce_keras.layers.collegial import Aggregate
from ce_keras.layers.collegial_dense import CollegialDense
from ce_keras.layers.initializers import kernel_initializer
from ce_keras.zoo.building import check_outputs, defaults, layer_seeds, with_weights
from ce_keras.zoo.weights import find_weights


def fully_connected(
    input_shape: tuple[int, ...] = (28, 28, 1),
    classes: int = 10,
    classifier_activation: str | None = "softmax",
    weights: str | Path | None = None,
    name: str | None = None,
    *,
    depth: int = 6,
    base: int = 200,
    mode: str | None = None,
    cardinality: int | None = None,
    width: int | None = None,
    seed: int | None = None,
    dtype: Any = None,
) -> keras.Model:
    """Build fully connected ReLU networks side by side, their outputs summed as in Eq. 4.

    Args:
        input_shape: shape of one example, which is flattened.
        classes: number of outputs.
        classifier_activation: `"softmax"`, or `None` for logits.
        weights: a `.weights.h5` or `.safetensors` file, or the data set of published weights;
            `None` for random weights.
        name: name of the model.
        depth: number of weight matrices of each path (L): `depth - 1` hidden layers.
        base: width of the baseline's hidden layers.
        mode: `"primal"` or `"dual"`: the search's design, by the closed form; `"baseline"`: one
            path, `base` wide.
        cardinality: number of paths; with `width`, instead of `mode`.
        width: width of every path.
        seed: for reproducible weights.
        dtype: dtype of the layers, or a policy's name; Keras' default if not given.

    Raises:
        ValueError: for arguments that contradict each other, or sizes that are not positive.

    >>> fully_connected(mode="baseline").name
    'fully_connected_1x200d'
    """
    input_shape = tuple(sequence_of("input_shape", input_shape, positive_int))
    if not input_shape:
        raise ValueError("input_shape: got (); it must have a size")
    check_outputs(name, classes, classifier_activation)
    positive_int("base", base)
    if positive_int("depth", depth) < 2:
        raise ValueError(f"depth: got {depth}; it must be 2 or more: there is a hidden layer")
    design = connected_design(input_shape, classes, depth, base, mode, cardinality, width)
    checked_seed(seed)
    source = find_weights(weights, f"fully_connected_{design}")
    with defaults(dtype):
        image = keras.Input(input_shape)
        outputs = paths(image, design, depth, classes, seed)
        outputs = Aggregate(design.cardinality, name="sum")(outputs)
        if classifier_activation is not None:
            # Under a mixed policy the probabilities stay in full precision.
            whole = keras.config.dtype_policy().variable_dtype
            outputs = layers.Activation(classifier_activation, dtype=whole, name="predictions")(
                outputs
            )
        model = keras.Model(image, outputs, name=name or f"fully_connected_{design}")
        return with_weights(model, source)


def paths(x: Any, design: Design, depth: int, classes: int, seed: int | None) -> Any:
    """Apply fully connected paths; return their outputs side by side, `(batch, m * classes)`."""
    m, n = design
    seeds = layer_seeds(seed, depth)
    x = layers.Flatten()(x)
    for layer in range(depth - 1):
        x = CollegialDense(
            m * n,
            m,
            activation="relu",
            shared_input=layer == 0,
            kernel_initializer=kernel_initializer(seed=seeds[layer]),
            name=f"hidden{layer + 1}",
        )(x)
    last = kernel_initializer(gain=1.0, seed=seeds[-1])
    return CollegialDense(m * classes, m, kernel_initializer=last, name="outputs")(x)


def connected_design(
    input_shape: tuple[int, ...],
    classes: int,
    depth: int,
    base: int,
    mode: str | None,
    cardinality: int | None,
    width: int | None,
) -> Design:
    """Return the design that the arguments of `fully_connected` ask for."""
    if (cardinality is None) != (width is None):
        raise ValueError("cardinality, width: give both, or a mode")
    if cardinality is not None and width is not None:
        if mode is not None:
            raise ValueError(f"mode: got {brief(mode)}; leave it out where a design is given")
        return Design(positive_int("cardinality", cardinality), positive_int("width", width))
    if isinstance(mode, str) and mode == "baseline":
        return Design(1, base)
    one_of("mode", mode, (None, "primal", "dual", "baseline"))
    module = geometry.fully_connected(math.prod(input_shape), [base] * (depth - 1), classes)
    return solve(module, "dual" if mode == "dual" else "primal", alpha="closed_form").design
