"""Chains in backbones of transfer learning, applied at every time step, in U-Nets, of KerasHub."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from rewritable import block

from ce_keras import collegialize, inspect
from ce_keras.latency import Timing
from ce_keras.layers.flops import flops
from ce_keras.rewrite import baselines_of
from ce_keras.rewrite.baselines import activations

DESIGN = "2x8d"  # Paths as wide as the blocks are: a split keeps the function.


def backbone():
    image = keras.Input((6, 6, 3))
    x = block(layers.Conv2D(12, 3, padding="same", name="stem")(image), 8, "a", norm=norm)
    return keras.Model(image, layers.GlobalAveragePooling2D()(x), name="backbone")


def norm(name):
    return layers.BatchNormalization(name=name)


def transfer():
    frozen, image = backbone(), keras.Input((6, 6, 3))
    frozen.trainable = False
    scaled = keras.Sequential([layers.Rescaling(1 / 255)], name="scaled")(image)
    return keras.Model(image, layers.Dense(2)(frozen(scaled, training=False)))


def siamese():
    shared, one, other = backbone(), keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    return keras.Model(
        [one, other], layers.Dense(2)(layers.Subtract()([shared(one), shared(other)]))
    )


def video():
    frames = keras.Input((3, 6, 6, 3))
    steps = layers.TimeDistributed(backbone(), name="frames")(frames)
    return keras.Model(frames, layers.Dense(2)(layers.GlobalAveragePooling1D()(steps)))


def unet():
    image = keras.Input((6, 6, 3))
    left = block(layers.Conv2D(12, 3, padding="same")(image), 8, "left")
    middle = block(layers.Conv2D(12, 3, strides=2, padding="same")(left), 8, "middle")
    right = layers.Concatenate()([left, layers.UpSampling2D()(middle)])
    return keras.Model(image, layers.Conv2D(2, 1)(block(right, 8, "right")))


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (transfer, ["backbone/a"]),
        (siamese, ["backbone/a"]),
        (video, ["frames/a"]),
        (unet, ["left", "middle", "right"]),
    ],
)
def test_chains_become_paths_wherever_they_are(build, found, rng, tmp_path):
    model = build()
    ensemble = collegialize(model, design=DESIGN, init="split", seed=0)
    assert [each.name for each in ensemble.report.candidates] == found
    x = [rng.normal(size=(2, *each.shape[1:])).astype("float32") for each in model.inputs]
    x = x if len(x) > 1 else x[0]
    np.testing.assert_allclose(ensemble(x), model(x), rtol=1e-4, atol=1e-5)
    ensemble.save(tmp_path / "a.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "a.keras")(x), ensemble(x))
    assert len(ensemble.trainable_weights) == len(model.trainable_weights)


def rows_and_row():
    chain = [layers.Dense(units, "relu", name=f"fc{units}") for units in (16, 8, 4)]
    rows, row = keras.Input((5, 12)), keras.Input((12,))
    outputs = []
    for x in (rows, row):
        for layer in chain:
            x = layer(x)  # noqa: PLW2901
        outputs.append(x)
    return keras.Model([rows, row], outputs)


@pytest.mark.parametrize("build", [siamese, video, rows_and_row])
def test_flops_and_memory_of_several_calls_are_those_of_the_rebuilt_model(build):
    """A design's costs are counted from the chain, at all its calls, and the rest of the model."""
    model = build()
    ensemble = collegialize(model, design="3x5d")
    before, after = ensemble.report.before, ensemble.report.after
    assert (before.flops, after.flops) == (flops(model), flops(ensemble))
    (family,) = baselines_of(model)
    memory = family.budget("memory", Timing(batch=1))
    assert float(memory.of(3, np.array(5))) == 4 * activations(ensemble)


class Followed(keras.Model):
    """A functional model with a layer behind it."""

    def __init__(self, inner):
        super().__init__(inner.inputs[0], inner.outputs[0])
        self.last = layers.Dense(4)

    def call(self, x):
        return self.last(super().call(x))


def test_flops_of_a_model_with_a_call_of_its_own_are_not_known():
    image = keras.Input((6, 6, 3))
    model = keras.Model(image, layers.Dense(2)(Followed(backbone())(image)))
    report = inspect(model, design="3x5d")
    assert [each.name for each in report.candidates] == ["followed/a"]
    assert report.before.flops is None


def test_why_chains_within_wrappers_are_left():
    frames, image, shared = keras.Input((3, 6, 6, 3)), keras.Input((6, 6, 3)), backbone()
    steps = layers.TimeDistributed(shared)(frames)
    with pytest.raises(ValueError, match="model: 'backbone' is applied both at every time step an"):
        inspect(keras.Model([frames, image], [steps, shared(image)]))
    x = frames
    for size in (1, 3, 1):
        x = layers.TimeDistributed(layers.Conv2D(8, size, padding="same"))(x)
    x = layers.Reshape((108, 8))(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    reasons = {each.reason for each in inspect(keras.Model(frames, x)).skipped}
    assert reasons == {
        "it applies one layer: make a model of the chain, and apply that at every time step",
        "its heads are paths already",
    }


@pytest.mark.slow
def test_resnets_of_keras_hub(rng):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What the libraries that it imports say is their own.
        hub = pytest.importorskip("keras_hub")
    model = hub.models.ResNetBackbone(
        input_conv_filters=[8],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[2, 1],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        image_shape=(16, 16, 3),
    )
    ensemble = collegialize(model, design="2x64d", init="split", seed=0)
    names = [each.name for each in ensemble.report.candidates]
    assert names == ["stack0_block0", "stack0_block1", "stack1_block0"]
    x = rng.normal(size=(2, 16, 16, 3)).astype("float32")
    np.testing.assert_allclose(ensemble(x), model(x), rtol=1e-4, atol=1e-5)
    assert collegialize(model, mode="dual").count_params() < model.count_params()
