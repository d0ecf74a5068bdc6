"""The empirical tangent kernel of a Keras model: K(x1, x2) = J(x1) J(x2)^T."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
from keras import ops, tree

from ce_keras.checks import brief, keras_model, one_of, positive_int, shortened, whole_number
from ce_keras.layers.ensemble import configuration
from ce_keras.ntk.axes import OutputAxes, examples_of, number_of_examples, only_output
from ce_keras.ntk.engines import (
    Engine,
    bytes_of,
    checked_variables,
    engine_for,
    signature_of,
)
from ce_keras.progress import progress
from ce_keras.resumable import checked_array_path, resumable_array

# Bytes that the gradients of a block may take.
_MEMORY = 2**32


def empirical_ntk(
    model: keras.Model,
    x1: Any,
    x2: Any = None,
    trace_axes: Sequence[int] = (-1,),
    diagonal_axes: Sequence[int] = (),
    batch_size: int | None = None,
    engine: Engine = "auto",
    variables: Sequence[Any] | None = None,
    out: str | Path | None = None,
) -> np.ndarray:
    """Return the finite-width neural tangent kernel of a model, for its present weights.

    K(x, y) is the inner product of the gradients, by all trainable variables, of the model's
    outputs at x and at y. Normalisation and dropout are in inference mode: what is
    differentiated is `model(x, training=False)`.

    Args:
        model: a Keras model of one output, on the TensorFlow, JAX or PyTorch backend.
        x1: inputs, examples first; a nested structure where the model takes one.
        x2: other inputs; `x1` again if not given, and then half of the work is saved.
        trace_axes: output axes whose diagonal is averaged, as in neural-tangents. By default the
            last one: the logits. `()` keeps every pair.
        diagonal_axes: output axes of which only equal indices are kept. With 0, the axis of the
            examples, only the kernel's diagonal is computed.
        batch_size: examples whose gradients are held at a time; by default, as many as fit four
            gigabytes. Where that is not all of them, the kernel is computed in blocks, the
            symmetric half only, with a progress bar.
        engine: `"structured"`: layer by layer, exact and fast; layers it does not know are left
            to autodiff, and it says so once. `"autodiff"`, or `"tape"`: jacobians of the whole
            model. `"auto"`: structured wherever it knows a layer.
        variables: Keras variables to differentiate by; the model's trainable ones if not given.
        out: a `.npy` file to hold the kernel, memory-mapped, for one larger than memory. While it
            grows it lies beside that under another name; a call that was cut off goes on where it
            stopped if it is made again with the same model, weights and inputs.

    Returns:
        For outputs of shape `(N, o_1, ..., o_k)` an array of shape `(N1, N2, ...)`, or `(N, ...)`
        if axis 0 is diagonal, in which traced axes are missing, diagonal axes appear once and all
        others twice, side by side: with `trace_axes=()` a classifier's is `(N1, N2, O, O)`.

    Raises:
        ValueError: for an unknown engine, axes that are not there, variables that are not the
            model's, no examples, inputs that are infinite or NaN, a model whose outputs have no
            axis of examples or whose examples influence each other, or a backend of Keras other
            than TensorFlow, JAX and PyTorch.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"),
    ...                           keras.layers.Dense(2)])
    >>> x = np.eye(3, dtype="float32")
    >>> empirical_ntk(model, x).shape, empirical_ntk(model, x, x[:1], trace_axes=()).shape
    ((3, 3), (3, 1, 2, 2))
    """
    keras_model("model", model)
    one_of("engine", engine, get_args(Engine))
    if out is not None:
        out = checked_array_path("out", out)
    x1, x2 = _checked_pair(x1, x2)
    n1 = number_of_examples(x1)
    n2 = n1 if x2 is None else number_of_examples(x2)
    if batch_size is not None:
        positive_int("batch_size", batch_size)
    asked_axes = (_axes("trace_axes", trace_axes), _axes("diagonal_axes", diagonal_axes))
    computing = engine_for(model, x1, *asked_axes, engine, variables)
    axes = computing.axes
    if axes.same_examples and n1 != n2:
        raise ValueError(f"x2: has {n2} examples where x1 has {n1}; a diagonal needs as many")
    # Four bytes a number, and half as much again for what the forward pass keeps.
    size = batch_size or max(1, _MEMORY // (6 * computing.numbers_per_example))
    if size >= max(n1, n2) and out is None:
        return ops.convert_to_numpy(computing.kernel(x1, x2))
    key = None
    if out is not None:
        paths = [variable.path for variable in checked_variables(model, variables)]
        # What a configuration does not say of layers and functions, their outputs do.
        outputs = only_output(model(examples_of(x1, slice(3)), training=False))
        shown = [f"{value:.3e}" for value in ops.convert_to_numpy(outputs).ravel().tolist()]
        asked = (axes.key, n1, n2, size, engine, paths, configuration(model), shown)
        key = _fingerprint(model, (x1, x2), asked)
    other = "another model, weights, inputs or arguments"
    blocks = _blocks(n1, n2, size, x2 is None, axes)
    shape = axes.kernel_shape(n1, n2)
    with resumable_array("out", out, shape, axes.dtype, key, other) as (kernel, finished, finish):
        for index, block in enumerate(progress(blocks, desc="kernel", unit="block", delay=1)):
            if index not in finished:
                _fill(kernel, computing, x1, x2, *block)
                finish(index)
    return kernel if out is None else np.load(out, mmap_mode="r")


def _blocks(
    n1: int, n2: int, size: int, symmetric: bool, axes: OutputAxes
) -> list[tuple[slice, slice]]:
    """Return the rows and columns of each block: all, the upper triangle, or the diagonal."""
    rows, columns = (
        [slice(start, min(start + size, n)) for start in range(0, n, size)] for n in (n1, n2)
    )
    if axes.same_examples:
        return list(zip(rows, columns, strict=True))
    return [
        (row, column)
        for row in rows
        for column in columns
        if not symmetric or column.start >= row.start
    ]


def _fill(kernel: np.ndarray, engine: Any, x1: Any, x2: Any, rows: slice, columns: slice) -> None:
    """Compute one block, and its mirror image where the kernel is symmetric."""
    symmetric = x2 is None
    on_diagonal = symmetric and rows == columns
    other = None if on_diagonal else examples_of(x1 if symmetric else x2, columns)
    block = ops.convert_to_numpy(engine.kernel(examples_of(x1, rows), other))
    if engine.axes.same_examples:
        kernel[rows] = block
        return
    kernel[rows, columns] = block
    if symmetric and not on_diagonal:
        kernel[columns, rows] = engine.axes.transposed(block)


def _fingerprint(model: keras.Model, inputs: Any, asked: tuple[Any, ...]) -> str:
    """Return a hash of everything that the kernel depends on."""
    digest = hashlib.blake2b(repr(asked).encode())
    for tensor in [weight.value for weight in model.weights] + tree.flatten(inputs):
        if tensor is not None:
            digest.update(bytes_of(ops.convert_to_tensor(tensor)))
    return digest.hexdigest()


def _checked_pair(x1: Any, x2: Any) -> tuple[Any, Any]:
    x1 = checked_inputs("x1", x1)
    if x2 is None:
        return x1, None
    x2 = checked_inputs("x2", x2)
    if signature_of(x2) != signature_of(x1):
        raise ValueError(
            f"x2: got {signature_of(x2)}; examples must be of the type and shape of x1's, "
            f"{signature_of(x1)}"
        )
    return x1, x2


def checked_inputs(argument: str, x: Any) -> Any:
    """Return inputs as tensors.

    Raises:
        ValueError: for data sets, arrays of different lengths, no examples, complex numbers, and
            numbers that are infinite or NaN.
    """
    if hasattr(x, "element_spec"):
        raise ValueError(f"{argument}: got a tf.data.Dataset; give arrays of its examples")
    try:
        x = tree.map_structure(ops.convert_to_tensor, x)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{argument}: got {brief(x)}; it must be an array of examples, or a structure of such "
            f"arrays: {shortened(str(error))}"
        ) from None
    tensors = tree.flatten(x)
    counts = {tensor.shape[0] if len(tensor.shape) else None for tensor in tensors}
    if len(counts) != 1 or counts & {0, None}:
        raise ValueError(
            f"{argument}: got shapes {[tuple(tensor.shape) for tensor in tensors]}; the first axis "
            "must be the examples, as many in each, one or more"
        )
    for tensor in tensors:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if dtype.startswith("complex"):
            raise ValueError(f"{argument}: has complex numbers; kernels are of real inputs")
        if keras.backend.is_float_dtype(dtype):
            finite = np.isfinite(ops.convert_to_numpy(tensor))
            if not finite.all():
                raise ValueError(
                    f"{argument}: {finite.size - np.count_nonzero(finite)} of its {finite.size} "
                    "numbers are infinite or NaN"
                )
    return x


def _axes(argument: str, axes: Any) -> tuple[int, ...]:
    axes = axes if isinstance(axes, list | tuple) else (axes,)
    return tuple(whole_number(argument, axis) for axis in axes)
