"""On any backend: kernels of all families of models. Run by test_backends.

They are compared with those of the whole model's jacobian, by `jax.jacrev` or `torch.func.jacrev`.
"""

import logging
import sys

import keras
import numpy as np
from kernel_models import MODELS, behind_a_layer, inputs, shaken

from ce_keras import ntk

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
    """Single precision: relative to the largest entry."""
    assert found.shape == expected.shape, f"{name}: {found.shape}, not {expected.shape}"
    gap = abs(found - expected).max() / abs(expected).max()
    assert gap < 1e-5, f"{name}: {gap}"


def main(names):
    messages = []
    logging.getLogger("ce_keras").addHandler(logging.StreamHandler(sys.stdout))
    logger = logging.Handler()
    logger.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("ce_keras").addHandler(logger)
    rng = np.random.default_rng(20200929)
    for name in names or MODELS:
        model = shaken(behind_a_layer(MODELS[name]()), rng)
        x = inputs(model, 3, rng)
        x = x if x.dtype == "int32" else x.astype("float32")
        j = jacobian(model, x)
        full = ntk.empirical_ntk(model, x, trace_axes=(), engine="structured")
        close(name, full.reshape(3, 3, j.shape[1], -1), np.einsum("nok,mpk->nmop", j, j))
    assert not messages, "a rule was not used, or was wrong"


if __name__ == "__main__":
    main(sys.argv[1:])
