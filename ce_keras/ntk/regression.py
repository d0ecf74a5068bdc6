"""Regression with the kernel, and its product with a vector."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from ce_keras.checks import boolean, finite_number, keras_model, positive_int, real_array
from ce_keras.ntk.analysis import as_matrix
from ce_keras.ntk.autodiff import stateless
from ce_keras.ntk.axes import only_output
from ce_keras.ntk.backends import backend
from ce_keras.ntk.empirical import checked_inputs, empirical_ntk
from ce_keras.ntk.engines import checked_variables, differentiable, outputs_of


def ntk_vector_product(model: keras.Model, x1: Any, vector: Any, x2: Any = None) -> np.ndarray:
    """Return K(x1, x2) times a vector, by one backward and one forward-mode pass.

    Args:
        model: a Keras model of one output.
        x1: inputs, examples first.
        vector: one number for every output at `x2`: of the outputs' shape.
        x2: other inputs; `x1` again if not given.

    Returns:
        An array of the outputs' shape at `x1`: the product with the kernel of `trace_axes=()`.

    Raises:
        ValueError: for a vector of another shape.

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> x = np.eye(3, dtype="float32")
    >>> ntk_vector_product(model, x, np.ones((3, 2))).tolist()
    [[4.0, 4.0], [4.0, 4.0], [4.0, 4.0]]
    """
    keras_model("model", model)
    x1 = checked_inputs("x1", x1)
    x2 = x1 if x2 is None else checked_inputs("x2", x2)
    found = outputs_of("x1", model, x1)  # Some weights are made by the first call.
    found = only_output(found if x2 is x1 else outputs_of("x2", model, x2))
    shape, dtype = tuple(found.shape), differentiable(model, found)
    vector = real_array("vector", vector)
    if vector.shape != shape:
        raise ValueError(f"vector: got shape {vector.shape}; the outputs have {shape}")
    if not np.isfinite(ops.convert_to_numpy(ops.cast(vector, dtype))).all():
        raise ValueError(f"vector: its numbers are too large for the outputs' {dtype}")
    variables = checked_variables(model)
    values = [ops.convert_to_tensor(variable.value) for variable in variables]

    def outputs(x: Any, values: Sequence[Any]) -> Any:
        with stateless(model, variables, values):
            return only_output(model(x, training=False))

    def along(values: Sequence[Any]) -> Any:
        found = outputs(x2, values)
        return ops.reshape(ops.sum(found * ops.cast(vector, dtype)), [1])

    direction = [gradient[0] for gradient in backend.jacobian(along, values)]
    direction = [ops.cast(each, value.dtype) for each, value in zip(direction, values, strict=True)]
    product = backend.jvp(functools.partial(outputs, x1), values, direction)
    return ops.convert_to_numpy(product)


class NTKRegressor:
    """Kernel regression with a model's tangent kernel.

    The prediction is f(x) + K(x, X) (K(X, X) + ridge * s)^-1 (y - f(X)), with f the model as it
    is and s the mean of the kernel's diagonal. Gradient descent on the squared error ends there for
    the model's linearisation; a ridge above 0 is like stopping it early.

    Args:
        model: a Keras model of one output of shape `(N, outputs)`.
        ridge: the number added to the diagonal, relative to its mean.
        traced: use the average of the outputs' kernels, of N rows, for all outputs, instead of one
            kernel of N * outputs rows. Exact where the kernel is the same for every output and 0
            between two of them.
        batch_size: examples whose gradients are held at a time.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype="float32")
    >>> regressor = NTKRegressor(model, ridge=1e-6).fit(x, [[1.0], [2.0], [3.0]])
    >>> bool(abs(regressor.predict(x[:1]) - 1) < 1e-3)
    True
    """

    def __init__(
        self,
        model: keras.Model,
        ridge: float = 1e-6,
        traced: bool = True,
        batch_size: int | None = None,
    ) -> None:
        boolean("traced", traced)
        keras_model("model", model)
        finite_number("ridge", ridge, least=0)
        if batch_size is not None:
            positive_int("batch_size", batch_size)
        self.model = model
        self.ridge = ridge
        self.traced = traced
        self.batch_size = batch_size

    def fit(self, x: Any, y: Any) -> NTKRegressor:
        """Solve for the training set.

        Args:
            x: inputs, examples first.
            y: targets, of the shape of the model's outputs.

        Raises:
            ValueError: for targets of another shape, or a model of outputs of another rank.
            numpy.linalg.LinAlgError: for a singular kernel without a ridge.
        """
        x = checked_inputs("x", x)
        outputs = self._outputs(x)
        if outputs.ndim != 2:
            raise ValueError(
                f"model: {self.model.name!r} gives outputs of shape {outputs.shape}; regression "
                "needs (N, outputs)"
            )
        y = real_array("y", y)
        if np.shape(y) != outputs.shape:
            raise ValueError(f"y: got shape {np.shape(y)}; the outputs have {outputs.shape}")
        kernel = self._kernel(x, None).astype(np.float64)
        kernel[np.diag_indices(len(kernel))] += self.ridge * np.trace(kernel) / len(kernel)
        rest = y - outputs
        self._x = x
        self._weights = np.linalg.solve(kernel, rest if self.traced else rest.ravel())
        return self

    def predict(self, x: Any) -> np.ndarray:
        """Return the predictions for inputs, `(N, outputs)`.

        Raises:
            ValueError: before `fit`, or for examples of another shape than its.
        """
        if not hasattr(self, "_weights"):
            raise ValueError("NTKRegressor: call fit(x, y) first")
        x = checked_inputs("x", x)
        outputs = self._outputs(x)
        shapes, known = ([t.shape[1:] for t in tree.flatten(each)] for each in (x, self._x))
        if shapes != known:
            raise ValueError(f"x: got examples of shapes {shapes}; those of fit had {known}")
        x = tree.map_structure(lambda new, old: ops.cast(new, old.dtype), x, self._x)
        learned = self._kernel(x, self._x) @ self._weights
        return outputs + learned.reshape(outputs.shape)

    def _outputs(self, x: Any) -> np.ndarray:
        return ops.convert_to_numpy(only_output(outputs_of("x", self.model, x))).astype(float)

    def _kernel(self, x1: Any, x2: Any) -> np.ndarray:
        axes = (-1,) if self.traced else ()
        kernel = empirical_ntk(self.model, x1, x2, trace_axes=axes, batch_size=self.batch_size)
        return kernel if self.traced else as_matrix(kernel)
