import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ce_keras.layers import (
    CollegialConv2D,
    FusedBatchNormalization,
    GroupedConv1D,
    GroupedConv3D,
    accelerate,
)
from ce_keras.layers.keras_internals import all_layers


@keras.saving.register_keras_serializable()
class Unit(layers.Layer):
    """A layer that holds others, in a list."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.filters = filters
        self.steps = [
            layers.Conv2D(filters, 3, padding="same", groups=4, use_bias=False),
            layers.BatchNormalization(momentum=0.5),
        ]

    def build(self, shape):
        for step in self.steps:
            step.build(shape)

    def call(self, x, training=None):
        return self.steps[1](self.steps[0](x), training=training)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def network(ranks=(1, 2, 3)):
    """Layers that are shared, nested, wrapped, frozen, inside others, and of the ranks."""
    steps = [layers.Conv2D(8, 3, padding="same", groups=4), layers.BatchNormalization()]
    inner = keras.Sequential([keras.Input((6, 6, 8)), *steps], name="inner")
    image = keras.Input((6, 6, 8), name="image")
    x = layers.ReLU(name="relu")(inner(inner(image)))
    x = layers.Conv2D(
        8,
        (3, 1),
        strides=(2, 1),
        groups=2,
        kernel_regularizer="l2",
        bias_constraint="non_neg",
        trainable=False,
        activation="relu",
        name="strided",
    )(x)
    x = Unit(8, name="unit")(x)
    ends = [layers.Flatten(name="pixels")(x)]
    if 1 in ranks:
        y = layers.TimeDistributed(layers.Conv1D(8, 3, groups=2), name="wrapped")(x)
        y = layers.Reshape((8, 8), name="row")(y)
        y = layers.Conv1D(8, 3, padding="causal", groups=4, name="causal")(y)
        ends.append(layers.Flatten(name="line")(y))
    if 3 in ranks:
        y = layers.Reshape((2, 3, 2, 8), name="volume")(x)
        ends.append(layers.Flatten(name="voxels")(layers.Conv3D(8, 2, groups=4, name="cube")(y)))
    y = layers.Concatenate(name="all")(ends) if len(ends) > 1 else ends[0]
    return keras.Model(image, layers.Dense(3, name="head")(y), name="net")


def results(model, x, upstream):
    """Output of a training pass, every gradient, and the moving statistics after it."""
    with tf.GradientTape() as tape:
        y = model(x, training=True)
        loss = tf.reduce_sum(y * upstream) + sum(model.losses)
    gradients = tape.gradient(loss, [each.value for each in model.trainable_variables])
    return [y, *gradients, *(each.value for each in model.non_trainable_variables)]


def close(ours, theirs, terms=2**12, eps=2**-23):
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b).max() <= terms**0.5 * 4 * eps * max(1, np.abs(b).max())


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return network()


@pytest.fixture(scope="module")
def fast(model):
    return accelerate(model)


def test_outputs_gradients_and_statistics_are_the_models_own(rng):
    model = network(
        ranks=(2,)
    )  # Keras compiles every grouped convolution for itself: half seconds.
    x, upstream = rng.normal(size=(3, 6, 6, 8)), rng.normal(size=(3, 3))
    x, upstream = tf.constant(x, tf.float32), tf.constant(upstream, tf.float32)
    close(results(accelerate(model), x, upstream), results(model, x, upstream))


def test_names_flags_and_options_are_kept_and_the_models_share_nothing(model, fast):
    assert fast is not model
    assert [each.name for each in fast.layers] == [each.name for each in model.layers]
    assert [each.name for each in fast.inputs] == ["image"]
    assert not {id(each) for each in fast.variables} & {id(each) for each in model.variables}
    ours, theirs = fast.get_layer("strided"), model.get_layer("strided")
    assert type(ours) is CollegialConv2D
    assert not ours.trainable
    config = {**ours.get_config(), "groups": ours.cardinality}
    assert {key: config[key] for key in theirs.get_config()} == theirs.get_config()


def test_a_layer_of_two_models_is_still_one():
    shared = layers.Conv2D(8, 3, padding="same", groups=4, name="shared")
    inner = keras.Sequential([keras.Input((6, 6, 8)), shared], name="inner")
    image = keras.Input((6, 6, 8))
    fast = accelerate(keras.Model(image, inner(shared(image))))
    assert fast.get_layer("shared") is fast.get_layer("inner").layers[0]
    assert len(fast.weights) == 2


def test_every_grouped_convolution_is_replaced_and_reported(model, fast):
    kinds = (CollegialConv2D, FusedBatchNormalization, GroupedConv1D, GroupedConv3D)
    ours = [each for each in all_layers(fast) if isinstance(each, kinds)]
    assert [name for name, _ in fast.acceleration.replaced] == [each.name for each in ours]
    assert str(fast.acceleration).splitlines()[0] == (
        "net: 2 BatchNormalization, 2 Conv1D, 3 Conv2D, 1 Conv3D replaced"
    )
    assert "3 of them" in str(fast.acceleration)  # Two in the unit, one that is wrapped.
    assert not any(isinstance(each, kinds) for each in all_layers(model))


def test_it_is_saved_and_loaded(fast, tmp_path, rng):
    x = rng.normal(size=(2, 6, 6, 8)).astype("float32")
    fast.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    close([loaded(x)], [fast(x)])
    assert isinstance(loaded.get_layer("strided"), CollegialConv2D)
    assert isinstance(loaded.get_layer("wrapped").layer, GroupedConv1D)
    assert type(loaded.get_layer("unit").steps[0]) is layers.Conv2D
    again = accelerate(loaded).acceleration.replaced
    assert sorted(kind for _, kind in again) == ["BatchNormalization", "Conv2D"]


def test_a_model_that_is_compiled_goes_on_training_alike(rng):
    small = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    small.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    x, y = rng.normal(size=(8, 6, 6, 4)).astype("float32"), rng.normal(size=(8, 1))
    small.train_on_batch(x, y)
    fast = accelerate(small)
    assert int(fast.optimizer.iterations.numpy()) == 1
    for each in (small, fast):
        each.reset_metrics()
    close([fast.train_on_batch(x, y)[0]], [small.train_on_batch(x, y)[0]])
    close(fast.get_weights(), small.get_weights())


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_data_types_are_kept(policy, rng):
    image = keras.Input((6, 6, 4), dtype=policy if policy == "float64" else None)
    x = layers.Conv2D(4, 3, groups=2, dtype=policy)(image)
    model = keras.Model(image, layers.BatchNormalization(dtype=policy)(x))
    fast = accelerate(model)
    assert [each.dtype_policy.name for each in fast.layers[1:]] == [policy] * 2
    x = rng.normal(size=(2, 6, 6, 4))
    eps = 2**-7 if policy == "mixed_bfloat16" else 2**-23  # A normalisation is in float32.
    close([tf.cast(fast(x), "float64")], [tf.cast(model(x), "float64")], 2**4, eps)


class Own(layers.Conv2D):
    pass


class WithOwnConstructor(keras.Model):
    """Such as a backbone of KerasHub."""

    def __init__(self, filters, **options):
        image = keras.Input((6, 6, 4))
        y = layers.Conv2D(filters, 3, groups=2)(image)
        super().__init__(image, layers.BatchNormalization()(y), **options)
        self.filters = filters

    def get_config(self):
        return {"filters": self.filters, "name": self.name}


def test_a_model_with_a_constructor_of_its_own_keeps_its_class_and_its_files(tmp_path, rng):
    model = WithOwnConstructor(8)
    fast = accelerate(model)
    assert type(fast) is WithOwnConstructor
    assert isinstance(fast.layers[1], CollegialConv2D)
    x = rng.normal(size=(2, 6, 6, 4)).astype("float32")
    close([fast(x)], [model(x)])
    fast.save_weights(tmp_path / "a.weights.h5")
    other = WithOwnConstructor(8)
    other.load_weights(tmp_path / "a.weights.h5")
    close([other(x)], [model(x)])


def test_where_nothing_is_to_do_the_model_itself_is_returned_with_the_reason(caplog, capsys):
    caplog.set_level("INFO", "ce_keras")
    plain = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3)], name="plain")
    own = keras.Sequential([keras.Input((6, 6, 4)), Own(4, 3, groups=2)], name="own")
    assert accelerate(plain, verbose=True) is plain
    assert "plain: nothing replaced; it has no convolution with groups" in capsys.readouterr().out
    assert accelerate(own) is own
    assert "left: 1 Own: a class of its own" in caplog.text


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (3, "model: got 3; it must be a Keras model"),
        (keras.Sequential([layers.Dense(2)], name="a"), "model: 'a' has no input yet"),
        (Subclassed(name="b"), r"model: 'b' is subclassed \(Subclassed\), and Keras cannot copy"),
    ],
)
def test_what_cannot_be_copied_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        accelerate(bad)
