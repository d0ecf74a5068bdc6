"""On any backend: kernels of all families of models. Run by test_kernel_backends.

They are compared with those of the whole model's jacobian, by `jax.jacrev` or `torch.func.jacrev`.
"""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from kernel_models import MODELS, behind_a_layer, inputs, sequential, shaken

from ce_keras import ntk
from ce_keras.variance.networks import ensemble_kernels

BACKEND = keras.backend.backend()


def jacobian(model, x):
    """The jacobian by all trainable variables, (N, O, parameters)."""
    variables = model.trainable_variables

    def outputs(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return keras.ops.reshape(model(x, training=False), (len(x), -1))

    values = [variable.value for variable in variables]
    if BACKEND == "jax":
        import jax

        parts = jax.jit(jax.jacrev(outputs))(values)
    else:
        import torch

        parts = torch.func.jacrev(outputs)([value.detach() for value in values])
    parts = [keras.ops.convert_to_numpy(part) for part in parts]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], 2)


def close(name, found, expected):
    """Compare in single precision, relative to the largest entry."""
    assert found.shape == expected.shape, f"{name}: {found.shape}, not {expected.shape}"
    gap = abs(found - expected).max() / abs(expected).max()
    assert gap < 1e-5, f"{name}: {gap}"


class Scaled(keras.layers.Layer):
    """A layer that no rule knows."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="uniform")

    def call(self, x):
        return x * self.scale


class Keeping(keras.layers.Dense):
    """A layer that keeps its last output."""

    def call(self, x, training=None):
        self.last = super().call(x, training)
        return self.last


def whole_kernels(name, messages, rng):
    """Every pair of logits of a family, by rules only."""
    model = shaken(behind_a_layer(MODELS[name]()), rng)
    x = inputs(model, 3, rng)
    x = x if x.dtype == "int32" else x.astype("float32")
    j = jacobian(model, x)
    full = ntk.empirical_ntk(model, x, trace_axes=(), engine="structured")
    close(name, full.reshape(3, 3, j.shape[1], -1), np.einsum("nok,mpk->nmop", j, j))
    assert not messages, f"{name}: {messages}"


def everything_else(messages, rng):
    """Axes, blocks, the other engine, layers without a rule, products with a vector, regression."""
    model = shaken(sequential((5,), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)), rng)
    x1, x2 = (rng.normal(size=(n, 5)).astype("float32") for n in (4, 3))
    j1, j2 = jacobian(model, x1), jacobian(model, x2)
    full = np.einsum("nok,mpk->nmop", j1, j2)
    for _ in range(2):
        found = ntk.empirical_ntk(model, x1, x2, batch_size=2)
        close("blocks", found, np.einsum("nmoo->nm", full) / 3)
    found = ntk.empirical_ntk(model, x1, trace_axes=(), diagonal_axes=(0, 1))
    close("diagonal", found, np.einsum("nok,nok->no", j1, j1))
    close("autodiff", ntk.empirical_ntk(model, x1, x2, (), engine="autodiff"), full)
    vector = rng.normal(size=(3, 3))
    product = ntk.ntk_vector_product(model, x1, vector, x2)
    close("vector", product, np.einsum("nmop,mp->no", full, vector))
    y = rng.normal(size=(4, 3))
    close("regression", ntk.NTKRegressor(model, 0, traced=False).fit(x1, y).predict(x1), y)
    assert not messages
    model = shaken(sequential((5,), keras.layers.Dense(4), Scaled(), keras.layers.Dense(2)), rng)
    j1 = jacobian(model, x1)
    found = ntk.empirical_ntk(model, x1, trace_axes=())
    close("fallback", found, np.einsum("nok,mpk->nmop", j1, j1))
    (message,) = messages
    assert "by autodiff, and slowly, for" in message
    assert model.layers[1].name in message
    assert model.layers[0].name not in message
    # No rule knows any layer of this one, which keeps what a trace leaves in it.
    kept = sequential((5,), Keeping(3))
    for _ in range(4):  # What a trace leaves in a layer is no setting of it.
        found = ntk.empirical_ntk(kept, x1)
    close("kept", found, np.einsum("nok,mok->nm", *2 * [jacobian(kept, x1)]) / 3)


class Buffered(keras.layers.Layer):
    """A layer that reads in Python what is no variable of it."""

    def build(self, shape):
        self.register_buffer("factor", keras.ops.ones(()))

    def call(self, x):
        return x * float(self.factor)


def two_inputs():
    """A model whose inputs are not in the order of their names."""
    b, a = keras.Input((5,), name="b"), keras.Input((5,), name="a")
    both = [keras.layers.Dense(4, "tanh")(b), keras.layers.Dense(4, "relu")(a)]
    return keras.Model([b, a], keras.layers.Dense(2)(keras.layers.Concatenate()(both)))


def recorded(rng):
    """PyTorch replays a kernel's operations: whatever changes between two calls must count."""
    import torch

    from ce_keras.ntk.backends import torch as backend

    def draw(*shape, order="C"):
        return np.asarray(rng.normal(size=(3, *shape, 5)), "float32", order=order)

    backend._CALLS = 2
    model, same = two_inputs(), torch.tensor(draw())
    plain = sequential((5,), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2))
    other = sequential((5,), Buffered(), keras.layers.Dense(2))
    pixels = sequential((2, 5), keras.layers.Flatten(), keras.layers.Dense(2))
    kinds = {
        "names": (model, lambda: {"b": draw(), "a": draw()}),
        "sorted": (model, lambda: {"a": draw(), "b": draw()}),
        "twice": (model, lambda: [same, same]),
        "not twice": (model, lambda: [draw(), draw()]),
        "C": (pixels, lambda: draw(2)),
        "Fortran": (pixels, lambda: draw(2, order="F")),
        "buffer": (other, draw),
    }
    for turn in range(4):
        for name, (each, inputs_of) in kinds.items():
            shaken(each, rng)
            other.layers[0].factor.fill_(1.0 + turn)
            for axes in ((-1,), ()):
                x = inputs_of()
                found = ntk.empirical_ntk(each, x, trace_axes=axes)
                expected = ntk.empirical_ntk(each, x, trace_axes=axes, engine="autodiff")
                close(f"recorded, {name}", found, expected)
    begun, calls = torch.nn.Module.__call__, []

    def counted(x):
        calls.append(x)
        return plain(x)

    functions = [backend.compiled(counted, plain) for _ in range(8)]
    x = torch.tensor(draw())

    def often(function):
        return [keras.ops.convert_to_numpy(function(x)) for _ in range(9)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(often, functions):
            for each in found:
                close("threads", each, keras.ops.convert_to_numpy(plain(x)))
    assert len(calls) == 8 * 3, "the third call is recorded, and the function not called again"
    assert torch.nn.Module.__call__ is begun


def wrapped(rng):
    """Parameters of PyTorch's own modules are refused, and do not matter where they are frozen."""
    import torch

    module = keras.layers.TorchModuleWrapper(torch.nn.Linear(5, 4))
    model = sequential((5,), module, keras.layers.Dense(2))
    x = rng.normal(size=(3, 5)).astype("float32")
    for variables in (None, module.variables):
        with pytest.raises(ValueError, match=module.name):
            ntk.empirical_ntk(model, x, variables=variables)
    module.trainable = False
    hidden = module(x).detach().numpy()
    close("wrapped", ntk.empirical_ntk(model, x), 1 + hidden @ hidden.T)


def network():
    """A member of the ensembles whose draws must be the same on every backend."""
    image = keras.Input((5, 5, 2))
    x = keras.layers.Conv2D(3, 2, activation="relu", bias_initializer="random_normal")(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2D(4, 3, groups=1, padding="same", activation="tanh")(x)
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def draws():
    """Kernels of freshly drawn networks, as the paths of one ensemble; NumPy draws the weights."""
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 2))
    return ensemble_kernels(network, x, 20, np.random.default_rng(1))


def main(folder, names):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("ce_keras").addHandler(handler)
    rng = np.random.default_rng(20200929)
    for name in names or MODELS:
        whole_kernels(name, messages, rng)
    everything_else(messages, rng)
    if BACKEND == "torch":
        recorded(rng)
        wrapped(rng)
    close("ensembles", draws(), np.load(Path(folder) / "draws.npy"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
