"""Traced, diagonal and paired axes are those of the jacobian."""

import numpy as np
import pytest
from keras import layers
from kernel_models import inputs, plain_loop, sequential, shaken

from ce_keras.ntk import (
    empirical_ntk,
)

AXES = [
    ((), ()),
    ((-1,), ()),
    ((1, 2), ()),
    ((), (2,)),
    ((1,), (2,)),
    ((2,), (1,)),
    ((), (1, 2)),
    ((-1,), (0,)),
    ((), (0,)),
    ((1,), (0, 2)),
]


@pytest.mark.parametrize("engine", ["structured", "tape"])
@pytest.mark.parametrize(("trace", "diagonal"), AXES)
def test_axes_are_those_of_the_jacobian(trace, diagonal, engine, float64, rng):
    model = shaken(
        sequential((6, 5), layers.Conv1D(3, 2, activation="tanh"), layers.Conv1D(2, 4)), rng
    )
    assert model.output_shape == (None, 2, 2)
    x1, x2 = inputs(model, 3, rng), inputs(model, 3, rng)
    j1, j2 = (plain_loop(model, x).reshape(3, 2, 2, -1) for x in (x1, x2))
    one, two, kept = "nabk", "mcdk", "nm"
    for axis, (first, second) in enumerate(["ac", "bd"], start=1):
        if axis in diagonal or axis in trace or axis - 3 in trace:
            two = two.replace(second, first)
        if axis in diagonal:
            kept += first
        elif axis not in trace and axis - 3 not in trace:
            kept += first + second
    if 0 in diagonal:
        two, kept = two.replace("m", "n"), kept.replace("m", "")
    expected = np.einsum(f"{one},{two}->{kept}", j1, j2) / 2 ** len(trace)
    kernel = empirical_ntk(model, x1, x2, trace, diagonal, engine=engine)
    np.testing.assert_allclose(kernel, expected, rtol=1e-9, atol=1e-9)
