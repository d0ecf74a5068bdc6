"""Every engine gives the kernel of the plain gradient loop, for every layer, axes and blocks."""

import numpy as np
import pytest
from keras import layers
from kernel_models import MODELS, behind_a_layer, flat, inputs, ours, plain_loop, sequential, shaken

from ce_keras.ntk import empirical_ntk
from ce_keras.ntk.recording import Recorder

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_structured_is_the_plain_gradient_loop(name, float64, rng, caplog):
    model = shaken(behind_a_layer(MODELS[name]()), rng)
    x1, x2 = inputs(model, 3, rng), inputs(model, 2, rng)
    j1, j2 = plain_loop(model, x1), plain_loop(model, x2)
    scale = 1e-10 * abs(np.einsum("nok,nok->n", j1, j1)).max()
    for _ in range(2):  # As it comes, and traced.
        full = empirical_ntk(model, x1, x2, trace_axes=(), engine="structured")
        full = full.reshape(3, 2, j1.shape[1], j1.shape[1])
        np.testing.assert_allclose(full, np.einsum("nok,mpk->nmop", j1, j2), atol=scale)
        traced = empirical_ntk(model, x1, engine="structured")
        expected = np.einsum("nok,mok->nm", j1, j1) / j1.shape[1]
        np.testing.assert_allclose(traced, expected, atol=scale)
    assert not ours(caplog), "a rule was not used, or was wrong"


@pytest.mark.parametrize("name", ["dense", "conv2d_grouped", "collegial_conv", "embedding"])
def test_tape_is_the_plain_gradient_loop(name, float64, rng):
    model = shaken(MODELS[name](), rng)
    x1, x2 = inputs(model, 3, rng), inputs(model, 2, rng)
    j1, j2 = plain_loop(model, x1), plain_loop(model, x2)
    full = empirical_ntk(model, x1, x2, trace_axes=(), engine="tape")
    np.testing.assert_allclose(full, np.einsum("nok,mpk->nmop", j1, j2), rtol=1e-9, atol=1e-9)


@every_model
def test_engines_agree_in_single_precision(name, rng):
    model = shaken(behind_a_layer(MODELS[name]()), rng)
    x = inputs(model, 4, rng).astype("int32" if "embedding" in name else "float32")
    fast, tape = (empirical_ntk(model, x, engine=engine) for engine in ("structured", "tape"))
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, tape, rtol=1e-4, atol=1e-5 * abs(tape).max())


@pytest.mark.parametrize("trace", [(), (1,)])
def test_large_symmetric_kernels_are_computed_by_halves(trace, float64, rng):
    model = sequential((3,), layers.Dense(24), layers.Reshape((2, 3, 4)), layers.Dense(5))
    x = inputs(model, 30, rng)
    halves, tape = (
        empirical_ntk(model, x, trace_axes=trace, engine=engine)
        for engine in ("structured", "tape")
    )
    np.testing.assert_allclose(halves, tape, rtol=1e-9, atol=1e-9)
    every = empirical_ntk(model, x, x.copy(), trace_axes=trace, engine="structured")
    np.testing.assert_allclose(halves, every, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", [layers.Conv1D, layers.Conv2D, layers.Conv3D])
@pytest.mark.parametrize("owner", ["frozen", "custom"])
def test_grouped_convolutions_pass_signals_on_whoever_owns_them(layer, owner, float64, rng):
    class Custom(layer):
        def call(self, x):
            return super().call(x)

    conv = {"frozen": layer, "custom": Custom}[owner](4, 2, groups=2, padding="same")
    shape = [3, 2, 3][: conv.rank]
    model = shaken(sequential((*shape, 3), layers.Dense(4, "tanh"), *flat(conv)), rng)
    conv.trainable = owner != "frozen"
    x = inputs(model, 3, rng)
    jacobian = plain_loop(model, x)
    kernel = empirical_ntk(model, x, trace_axes=(), engine="structured")
    np.testing.assert_allclose(kernel, np.einsum("nok,mpk->nmop", jacobian, jacobian))


def test_no_signal_goes_back_past_what_is_asked_for(monkeypatch, rng):
    recorded = []
    cotangents = Recorder._cotangents

    def counted(self, tape, total, points, counts):
        recorded.append(len(points))
        return cotangents(self, tape, total, points, counts)

    monkeypatch.setattr(Recorder, "_cotangents", counted)
    conv = layers.Conv2D(4, 2, groups=2)
    model = sequential((3, 3, 3), layers.Dense(4), *flat(conv))
    x = inputs(model, 3, rng).astype("float32")
    empirical_ntk(model, x, trace_axes=(), engine="structured", variables=[model.weights[-1]])
    assert set(recorded) == {1}


@pytest.mark.parametrize("outputs", [1, 2])
def test_many_examples(outputs, float64, rng):
    model = shaken(sequential((2,), layers.Dense(4200, "tanh"), layers.Dense(outputs)), rng)
    x = inputs(model, 260, rng)
    jacobian = plain_loop(model, x)
    kernel = empirical_ntk(model, x, engine="structured")
    np.testing.assert_allclose(kernel, np.einsum("nok,mok->nm", jacobian, jacobian) / outputs)


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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(("trace", "diagonal"), [((-1,), ()), ((), ()), ((), (0,)), ((), (1,))])
def test_blocks_make_the_same_kernel(size, trace, diagonal, float64, rng):
    model = shaken(MODELS["conv2d"](), rng)
    x1, x2 = inputs(model, 5, rng), inputs(model, 5 if diagonal == (0,) else 4, rng)
    for second in (None, x2):
        whole = empirical_ntk(model, x1, second, trace, diagonal)
        blocks = empirical_ntk(model, x1, second, trace, diagonal, batch_size=size)
        np.testing.assert_allclose(blocks, whole, rtol=1e-9, atol=1e-9)
