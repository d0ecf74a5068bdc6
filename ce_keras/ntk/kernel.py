"""The empirical tangent kernel of a Keras model: K(x1, x2) = J(x1) J(x2)^T."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from ce_keras.checks import (
    brief,
    keras_model,
    one_of,
    positive_int,
    shortened,
    whole_number,
)
from ce_keras.layers.ensemble import configuration
from ce_keras.layers.fan_in import leaves
from ce_keras.ntk.axes import OutputAxes, only_output
from ce_keras.ntk.growing import checked_array_path, growing
from ce_keras.ntk.records import RECORDING
from ce_keras.ntk.settings import bytes_of, settings_of
from ce_keras.ntk.structured import StructuredEngine
from ce_keras.ntk.tape import TapeEngine
from ce_keras.progress import progress

Engine = Literal["auto", "structured", "tape"]

logger = logging.getLogger("ce_keras")

# Engines that a model keeps, the last ones used.
_MOST_ENGINES = 8

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
    """The finite-width neural tangent kernel of a model, for its present weights.

    K(x, y) is the inner product of the gradients, by all trainable variables, of the model's
    outputs at x and at y. Normalisation and dropout are in inference mode: what is
    differentiated is `model(x, training=False)`.

    Args:
        model: a Keras model of one output, on the TensorFlow backend.
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
            to the tape, and it says so once. `"tape"`: jacobians of the whole model. `"auto"`:
            structured wherever it knows a layer.
        variables: Keras variables to differentiate by; the model's trainable ones if not given.
        out: a `.npy` file to hold the kernel, memory-mapped, for one larger than memory. While it
            grows it lies beside that under another name; a call that was cut off goes on where it
            stopped if it is made again with the same model, weights and inputs.

    Returns:
        For outputs of shape `(N, o_1, ..., o_k)` an array of shape `(N1, N2, ...)`, or `(N, ...)`
        if axis 0 is diagonal, in which traced axes are missing, diagonal axes appear once and all
        others twice, side by side: with `trace_axes=()` a classifier's is `(N1, N2, O, O)`.

    Raises:
        ValueError: for another backend, an unknown engine, axes that are not there, variables
            that are not the model's, no examples, inputs that are infinite or NaN, or a model whose
            outputs have no axis of examples or whose examples influence each other.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"),
    ...                           keras.layers.Dense(2)])
    >>> x = np.eye(3, dtype="float32")
    >>> empirical_ntk(model, x).shape, empirical_ntk(model, x, x[:1], trace_axes=()).shape
    ((3, 3), (3, 1, 2, 2))
    """
    keras_model("model", model)
    one_of("engine", engine, ("auto", "structured", "tape"))
    if out is not None:
        out = checked_array_path("out", out)
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"backend: Keras runs on {keras.backend.backend()}; kernels need the TensorFlow backend"
        )
    x1, x2 = _checked_pair(x1, x2)
    n1 = _count(x1)
    n2 = n1 if x2 is None else _count(x2)
    if batch_size is not None:
        positive_int("batch_size", batch_size)
    engine_of = _engine(model, x1, trace_axes, diagonal_axes, engine, variables)
    axes = engine_of.axes
    if axes.same_examples and n1 != n2:
        raise ValueError(f"x2: has {n2} examples where x1 has {n1}; a diagonal needs as many")
    if batch_size is None:
        # In single precision, and half as much again for what the forward pass keeps.
        size = max(1, _MEMORY // (6 * engine_of.numbers_per_example))
    else:
        size = batch_size
    if size >= max(n1, n2) and out is None:
        return engine_of.kernel(x1, x2).numpy()
    fingerprint = None
    if out is not None:
        chosen = model.trainable_variables if variables is None else variables
        paths = [variable.path for variable in chosen]
        asked = (axes.key, n1, n2, size, engine, paths, configuration(model))
        fingerprint = _fingerprint(model, (x1, x2), asked)
    with growing(out, axes.kernel_shape(n1, n2), fingerprint, axes.dtype) as (kernel, done, keep):
        blocks = _blocks(n1, n2, size, x2 is None, axes.same_examples)
        for index, block in enumerate(progress(blocks, desc="kernel", unit="block", delay=1)):
            if index not in done:
                _fill(kernel, engine_of, x1, x2, *block)
                keep(index)
    return kernel if out is None else np.load(out, mmap_mode="r")


def _checked_pair(x1: Any, x2: Any) -> tuple[Any, Any]:
    x1 = checked_inputs("x1", x1)
    if x2 is None:
        return x1, None
    x2 = checked_inputs("x2", x2)
    if _signature(x2) != _signature(x1):
        raise ValueError(
            f"x2: got {_signature(x2)}; examples must be of the type and shape of x1's, "
            f"{_signature(x1)}"
        )
    return x1, x2


def _fill(kernel: np.ndarray, engine: Any, x1: Any, x2: Any, rows: slice, columns: slice) -> None:
    """Compute one block, and its mirror image where the kernel is symmetric."""
    symmetric = x2 is None
    same = symmetric and rows == columns
    other = None if same else _part(x1 if symmetric else x2, columns)
    block = engine.kernel(_part(x1, rows), other).numpy()
    if engine.axes.same_examples:
        kernel[rows] = block
        return
    kernel[rows, columns] = block
    if symmetric and not same:
        kernel[columns, rows] = engine.axes.transposed(block)


def _fingerprint(model: keras.Model, inputs: Any, asked: tuple[Any, ...]) -> str:
    """What a kernel that is gone on with must have in common with the one that was begun."""
    digest = hashlib.blake2b(repr(asked).encode())
    for tensor in [weight.value for weight in model.weights] + tf.nest.flatten(inputs):
        if tensor is not None:
            digest.update(bytes_of(tf.convert_to_tensor(tensor)))
    return digest.hexdigest()


def _engine(
    model: keras.Model,
    x: Any,
    trace_axes: Sequence[int],
    diagonal_axes: Sequence[int],
    engine: str,
    variables: Sequence[Any] | None,
) -> Any:
    """The engine for these arguments: made once for a model, and kept with it."""
    engines = _engines_of(model, x)
    chosen = checked_variables(model, variables)
    kind = "tape" if engine == "tape" else engine
    asked = (_axes("trace_axes", trace_axes), _axes("diagonal_axes", diagonal_axes))
    settings, held = settings_of(model)
    key = (kind, *asked, tuple(map(id, chosen)), _signature(x), settings)
    with RECORDING:  # The model is verified, and must be itself.
        # What a key tells apart by identity is held with it: identities of what is gone are used
        # again.
        found = engines.pop(key, None) or (_made(model, x, kind, *asked, chosen), held)
        engines[key] = found
        if len(engines) > _MOST_ENGINES:
            del engines[next(iter(engines))]
    return found[0]


def _engines_of(model: keras.Model, x: Any) -> dict[Any, Any]:
    """Return where a model keeps its engines, once all of its weights are there.

    Some layers make them at the first call.
    """
    own = vars(model)
    if "_ce_keras_kernels" not in own or not all(layer.built for layer in leaves(model)):
        outputs_of("x1", model, _part(x, slice(0, 1)))
    return own.setdefault("_ce_keras_kernels", {})


def checked_variables(model: keras.Model, variables: Any = None) -> list[Any]:
    """Return the variables to differentiate by, the trainable ones if none are given.

    Raises:
        ValueError: where there are none, or they are not the model's.
    """
    if variables is None:
        if not model.trainable_variables:
            raise ValueError(f"variables: {model.name!r} has no trainable variables")
        return list(model.trainable_variables)
    if not isinstance(variables, list | tuple) or not variables:
        raise ValueError(
            f"variables: got {brief(variables)}; it must be a list of the model's variables"
        )
    own = {id(variable) for variable in model.variables}
    strangers = [getattr(v, "path", v) for v in variables if id(v) not in own]
    if strangers:
        raise ValueError(f"variables: {strangers} are not variables of {model.name!r}")
    if len({*map(id, variables)}) < len(variables):
        raise ValueError("variables: one is named twice")
    return list(variables)


def _made(
    model: keras.Model,
    x: Any,
    kind: str,
    trace_axes: tuple[int, ...],
    diagonal_axes: tuple[int, ...],
    variables: list[Any],
) -> Any:
    example = _part(x, slice(0, 1))
    outputs = only_output(outputs_of("x1", model, example))
    if not outputs.shape.rank or outputs.shape[0] != 1:
        raise ValueError(
            f"model: {model.name!r} gives outputs of shape {tuple(outputs.shape)} for one example; "
            "their first axis must be the examples"
        )
    axes = OutputAxes(outputs.shape, trace_axes, diagonal_axes, outputs.dtype.name)
    _refuse_interaction(model, x)
    if kind == "tape":
        return TapeEngine(model, variables, axes)
    try:
        made = StructuredEngine(model, variables, axes, x)
    except (TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
        # As a graph of fixed shapes: texts, for instance, are split into nobody knows how many.
        if kind == "structured":
            raise ValueError(
                f"engine: {model.name!r} cannot be computed layer by layer; use 'tape': {error}"
            ) from error
        logger.warning("kernel of %s: by tape, and slowly: %s", model.name, shortened(str(error)))
        return TapeEngine(model, variables, axes)
    if made.by_tape:
        logger.warning(
            "kernel of %s: by tape, and slowly, for %s: no rule covers all that these variables do",
            model.name,
            ", ".join(variable.path for variable in made.by_tape),
        )
    return made


def _refuse_interaction(model: keras.Model, x: Any) -> None:
    """Raise if an example's output depends on the other examples of its batch."""
    first = _part(x, slice(0, 1))
    second = (
        _part(x, slice(1, 2))
        if _count(x) > 1
        else tf.nest.map_structure(
            lambda part: tf.reverse(part, [-1]) if len(part.shape) > 1 else part, first
        )
    )
    alone, together = (
        only_output(
            model(
                tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), first, other),
                training=False,
            )
        )
        for other in (first, second)
    )
    gap = float(tf.reduce_max(tf.abs(tf.cast(alone[0] - together[0], tf.float64))))
    size = float(tf.reduce_max(tf.abs(tf.cast(alone[0], tf.float64))))
    if gap > 1e-3 * size:
        raise ValueError(
            f"model: an output of {model.name!r} changes with the other examples of its batch (by "
            f"{gap:.3g}, of {size:.3g}); a kernel between examples needs them apart"
        )


def _blocks(
    n1: int, n2: int, size: int, symmetric: bool, same_examples: bool
) -> list[tuple[slice, slice]]:
    """Blocks of the kernel: all, the upper half, or those on the diagonal."""
    rows, columns = (
        [slice(start, min(start + size, n)) for start in range(0, n, size)] for n in (n1, n2)
    )
    if same_examples:
        return list(zip(rows, columns, strict=True))
    return [
        (row, column)
        for row in rows
        for column in columns
        if not symmetric or column.start >= row.start
    ]


def outputs_of(argument: str, model: keras.Model, x: Any) -> Any:
    """Return what a model gives for inputs.

    Raises:
        ValueError: if it does not take them; the message has Keras' own.
    """
    try:
        return model(x, training=False)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        shapes = [tuple(part.shape) for part in tf.nest.flatten(x)]
        raise ValueError(
            f"{argument}: {model.name!r} does not take inputs of shapes {shapes}: "
            f"{shortened(' '.join(str(error).split()), 300)}"
        ) from error


def checked_inputs(argument: str, x: Any) -> Any:
    """Return inputs as tensors.

    Raises:
        ValueError: for what is no array of examples: data sets, parts of different lengths, no
            examples, complex numbers, and numbers that are infinite or NaN.
    """
    if isinstance(x, tf.data.Dataset):
        raise ValueError(f"{argument}: got a tf.data.Dataset; give arrays of its examples")
    try:
        x = tf.nest.map_structure(tf.convert_to_tensor, x)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{argument}: got {brief(x)}; it must be an array of examples, or a structure of such "
            f"arrays: {shortened(str(error))}"
        ) from None
    parts = tf.nest.flatten(x)
    counts = {part.shape[0] if part.shape.rank else None for part in parts}
    if len(counts) != 1 or counts & {0, None}:
        raise ValueError(
            f"{argument}: got shapes {[tuple(part.shape) for part in parts]}; the first axis must "
            "be the examples, as many in each, one or more"
        )
    for part in parts:
        if part.dtype.is_complex:
            raise ValueError(f"{argument}: has complex numbers; kernels are of real inputs")
        # In one pass, as a rule: the sum is finite where all of them are, or too large. Otherwise
        # one such number would be in every entry of its row, after all the work.
        if part.dtype.is_floating and not np.isfinite(tf.reduce_sum(part).numpy()):
            wrong = int(tf.math.count_nonzero(~tf.math.is_finite(part)))
            if wrong:
                raise ValueError(
                    f"{argument}: {wrong} of its {tf.size(part)} numbers are infinite or NaN"
                )
    return x


def _count(x: Any) -> int:
    return tf.nest.flatten(x)[0].shape[0]


def _part(x: Any, rows: slice) -> Any:
    return tf.nest.map_structure(lambda part: part[rows], x)


def _axes(argument: str, axes: Any) -> tuple[int, ...]:
    axes = axes if isinstance(axes, list | tuple) else (axes,)
    return tuple(whole_number(argument, axis) for axis in axes)


def _signature(x: Any) -> tuple[Any, ...]:
    return tuple((part.dtype.name, *part.shape[1:]) for part in tf.nest.flatten(x))
