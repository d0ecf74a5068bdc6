"""Reproductions of what the paper's variance law leaves open, at tiny sizes."""

import functools

import numpy as np
import pytest

from ce_keras.geometry import Design
from ce_keras.reproduce import attention, fit_prediction, network_variance, stage_widths
from ce_keras.reproduce.store import Points

IMAGES = {"batch_size": 2, "shrink": 3}
TINY = {
    attention: {
        "widths": (1, 4),
        "total": 4,
        "lengths": (3,),
        "correlations": (0.5,),
        "draws": 50,
        "block_draws": 10,
    },
    fit_prediction: {
        "narrow": (1, 2, 4),
        "wide": (8, 16),
        "draws": 100,
        "wide_draws": 50,
        "channels": 8,
    },
    network_variance: {"draws": 6, **IMAGES, "widths": (8, 4)},
    stage_widths: {"images": 1},
}


@functools.cache
def images_of_networks():
    return network_variance._images(network_variance.Settings(**IMAGES))


@functools.cache
def kernels(how, design, build=network_variance._kernels):
    """The kernel of a ResNeXt-11, which takes seconds to trace: once for all tests of this file."""
    return build("ResNeXt-11", how, design, images_of_networks())


@pytest.mark.parametrize(
    "module",
    [
        # A whole network is traced for each of four kernels.
        pytest.param(
            module,
            id=module.__name__.rpartition(".")[2],
            marks=pytest.mark.slow if module is network_variance else (),
        )
        for module in TINY
    ],
)
def test_a_tiny_instance_is_measured_compared_and_drawn(module, monkeypatch):
    from matplotlib.figure import Figure

    if module is fit_prediction:
        blocks = {name: module.BLOCKS[name] for name in ("normalisation", "pooled output")}
        monkeypatch.setattr(module, "BLOCKS", blocks)
    if module is network_variance:
        # Both networks are the same one: what is told of two is tried, one is traced.
        monkeypatch.setattr(module, "BLOCKS", {"ResNeXt-11": 1, "ResNeXt-20": 1})
        monkeypatch.setattr(module, "_kernels", lambda _, how, design, __: kernels(how, design))
        monkeypatch.setattr(module, "_AT_ONCE", 3)
    settings = module.SCALES["small"]._replace(**TINY[module])
    data = module.measure(settings, 0, Points()) | {"settings": settings._asdict()}
    if hasattr(module, "summarize"):
        data["summary"] = module.summarize(data)
    assert len(module.compare(data)) >= 4
    assert module.verdict(data).endswith(".")
    assert module.say(data).endswith(".")
    figure = Figure()
    module.draw(data, figure)
    assert figure.axes


@pytest.mark.slow
@pytest.mark.parametrize("how", ["training", "inference"])
def test_kernels_of_whole_networks_are_the_gradients_squares(how):
    """Against Keras' own layers with the same weights assigned, and a tape."""
    import keras
    import tensorflow as tf

    from ce_keras.variance.initial_values import initial_values
    from ce_keras.zoo.resnext import build_resnext

    images = images_of_networks()
    shape = network_variance._shape("ResNeXt-11", images)
    (design,) = network_variance._designs(shape, [4])
    kernel, size = kernels(how, design)
    numbers = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    model = build_resnext(shape, Design.parse(design), classifier_activation=None)
    drawn = [v for v in initial_values(model, model) if v.trainable and v.variance]
    cuts = np.cumsum([np.prod(v.variable.shape) for v in drawn])[:-1]
    for value, part in zip(drawn, np.split(numbers, cuts.astype(int)), strict=True):
        value.variable.assign(value.variance**0.5 * part.reshape(value.variable.shape))
    if how == "inference":
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        model(images, training=True)
    with tf.GradientTape() as tape:
        output = model(images, training=how == "training")[0, 0]
    gradients = tape.gradient(output, [v.variable.value for v in drawn])
    squares = [
        v.variance * float(tf.reduce_sum(g**2)) for v, g in zip(drawn, gradients, strict=True)
    ]
    np.testing.assert_allclose(float(kernel(numbers)[0]), sum(squares), rtol=1e-3)
