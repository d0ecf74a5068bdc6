"""What lies between and around chains: kept as it is, or named as the reason why not."""

import keras
import numpy as np
import pytest
from keras import layers
from rewritable import hidden

from ce_keras import collegialize, inspect
from ce_keras.layers.flops import trained_parameters


def leak(ensemble, cardinality, entry="a", exit_layer="c"):
    """How far the first path's outputs move when the other paths' entries do."""
    paths = keras.Model(ensemble.get_layer(entry).output, ensemble.get_layer(exit_layer).input)
    shape = [2, *(size or 3 for size in paths.inputs[0].shape[1:])]
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    moved, first = x.copy(), shape[-1] // cardinality
    moved[..., first:] += np.random.default_rng(1).normal(size=moved[..., first:].shape)
    outputs = [keras.ops.convert_to_numpy(paths(each)) for each in (x, moved)]
    own = outputs[0].shape[-1] // cardinality
    apart = abs(outputs[1] - outputs[0])
    assert apart[..., own:].max() > 0
    return apart[..., :own].max()


@pytest.mark.parametrize(
    "norm",
    [
        lambda: layers.LayerNormalization(center=False, scale=False),
        lambda: layers.GroupNormalization(1, center=False, scale=False),
        lambda: layers.GroupNormalization(2, center=False, scale=False),
    ],
)
def test_a_normalisation_without_weights_keeps_paths_apart(norm):
    model = keras.Sequential(
        [keras.Input((5, 6)), hidden("a"), norm(), hidden("b"), layers.Dense(2, name="c")]
    )
    for design in ("2x4d", "7x3d"):
        ensemble = collegialize(model, design=design)
        assert leak(ensemble, int(design[0])) == 0


@pytest.mark.parametrize("order", [1, -1])
def test_shared_layers_with_different_layers_between(order):
    a, b, c = hidden("a"), hidden("b"), layers.Dense(2, name="c")
    between = [layers.LayerNormalization(name="norm"), layers.ReLU()][::order]
    inputs = [keras.Input((6,)), keras.Input((6,))]
    model = keras.Model(inputs, [c(b(own(a(x)))) for own, x in zip(between, inputs, strict=True)])
    ensemble = collegialize(model, design="2x4d")
    assert type(ensemble.get_layer("norm")).__name__ == "CollegialLayerNormalization"


def test_masks_pass_through_paths():
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(10, 6, mask_zero=True),
            *map(hidden, "abc"),
            layers.GlobalAveragePooling1D(),
        ]
    )
    ensemble = collegialize(model, design="2x4d")
    padded, alone = np.array([[1, 2, 0, 0, 0]]), np.array([[1, 2]])
    np.testing.assert_allclose(ensemble(padded), ensemble(alone), rtol=1e-5)


def test_what_preprocessing_learnt_is_kept():
    norm = layers.Normalization(name="norm")
    norm.adapt(100 + 5 * np.random.default_rng(0).normal(size=(500, 6)))
    model = keras.Sequential([keras.Input((6,)), norm, hidden("a"), hidden("b"), layers.Dense(2)])
    ensemble = collegialize(model, design="2x4d")
    assert abs(ensemble.get_layer("norm")(np.full((1, 6), 100.0))).numpy().max() < 0.3


def dice(wanted, given):
    """A loss of a name that Keras' own has too."""
    return keras.ops.mean(abs(wanted - given), axis=-1) + 1000


def own_loss(wanted, given):
    return dice(wanted, given)


@pytest.mark.parametrize(("function", "wrapped"), [(dice, False), (own_loss, False), (dice, True)])
def test_losses_and_metrics_of_ones_own_are_kept(function, wrapped):
    model = keras.Sequential([keras.Input((6,)), hidden("a"), hidden("b"), layers.Dense(2)])
    metric = keras.metrics.MeanMetricWrapper(function, "own") if wrapped else function
    model.compile("adam", function, metrics=[metric, "mae"])
    ensemble = collegialize(model, design="2x4d")
    given = np.ones((8, 2), "float32")
    loss, own, mae = ensemble.evaluate(np.ones((8, 6)), given, verbose=0)
    assert loss == own == pytest.approx(1000 + mae)
    if wrapped:
        assert model.evaluate(np.ones((8, 6)), given, verbose=0)[1] >= 1000  # Its own state.


class OwnLoss(keras.losses.Loss):
    def call(self, wanted, given):
        return own_loss(wanted, given)


@pytest.mark.parametrize(
    "loss",
    [OwnLoss(), keras.losses.MeanSquaredError, keras.losses.Huber(0.1), {"last": own_loss}],
)
def test_losses_of_every_form_are_kept(loss):
    x = keras.Input((6,))
    outputs = layers.Dense(2, name="last")(hidden("b")(hidden("a")(x)))
    model = keras.Model(x, {"last": outputs} if isinstance(loss, dict) else outputs)
    model.compile("adam", loss)
    images, given = np.ones((8, 6)), np.ones((8, 2), "float32")
    given = {"last": given} if isinstance(loss, dict) else given
    wanted = model.evaluate(images, given, verbose=0)
    ensemble = collegialize(model, design="2x8d", init="split", seed=0)
    assert ensemble.evaluate(images, given, verbose=0) == pytest.approx(wanted, rel=1e-4)


class OwnOptimizer(keras.optimizers.SGD):
    pass


def test_an_optimizer_of_ones_own_is_left_to_its_owner(caplog):
    model = keras.Sequential([keras.Input((6,)), hidden("a"), hidden("b"), layers.Dense(2)])
    model.compile(OwnOptimizer(0.1), "mse")
    ensemble = collegialize(model, design="2x4d")
    assert model.compiled
    assert not ensemble.compiled
    assert "is returned uncompiled" in caplog.text


def gelu(x):
    """An activation of a name that Keras' own has too."""
    return 10 * keras.ops.relu(x)


@pytest.mark.parametrize(
    "around",
    [
        lambda: layers.TimeDistributed(layers.Dense(4, gelu)),
        lambda: layers.TimeDistributed(layers.Activation(gelu)),
        lambda: layers.RNN(layers.GRUCell(6, activation=gelu), return_sequences=True),
    ],
)
def test_functions_of_ones_own_are_kept_within_wrappers(around):
    row = [keras.Input((3, 6)), around(), layers.Flatten(), hidden("a"), hidden("b")]
    model = keras.Sequential([*row, layers.Dense(2)])
    ensemble = collegialize(model, design="2x8d", init="split", seed=0)
    x = np.random.default_rng(0).normal(size=(4, 3, 6)).astype("float32")
    np.testing.assert_allclose(ensemble.predict(x, verbose=0), model.predict(x, verbose=0), 1e-4)


def own_initializer(shape, dtype=None):
    return 0.5 * keras.ops.ones(shape, dtype)


def test_initialisers_of_ones_own_are_kept():
    options = {"kernel_initializer": own_initializer}
    dense = [layers.Dense(8, "relu", **options), layers.Dense(8, "relu", **options)]
    model = keras.Sequential([keras.Input((6,)), *dense, layers.Dense(2, **options)])
    ensemble = collegialize(model, design="2x4d")
    assert all((each.kernel.numpy() == 0.5).all() for each in ensemble.layers)


@pytest.mark.parametrize("build", [layers.Dense, lambda n: layers.Conv1D(n, 1)])
def test_the_scale_of_low_rank_parts_is_kept(build, rng):
    row = [keras.Input((3, 6)), hidden("a"), hidden("b"), layers.Dense(4), build(5)]
    model = keras.Sequential(row)
    model.layers[-1].enable_lora(2, lora_alpha=8)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    ensemble = collegialize(model, design="2x8d", init="split", seed=0)
    assert ensemble.layers[-1].lora_alpha == 8
    x = rng.normal(size=(4, 3, 6)).astype("float32")
    wanted = model.predict(x, verbose=0)
    assert abs(ensemble.predict(x, verbose=0) - wanted).max() < 1e-4 * abs(wanted).max()


def trained(model):
    return {variable.path.split("/", 1)[-1] for variable in model.trainable_variables}


def test_frozen_models_inside_and_frozen_variables_stay_frozen():
    x = keras.Input((6,))
    inner = layers.BatchNormalization(name="norm")(layers.Dense(6, name="low")(x))
    inside = keras.Model(x, layers.Dense(6, name="high")(inner), name="inside")
    inside.trainable = False
    for name in ("norm", "high"):
        inside.get_layer(name).trainable = True
    last = layers.Dense(2, name="last")
    model = keras.Model(x, last(hidden("b")(hidden("a")(inside(x)))))
    last.kernel.trainable = False
    model.get_layer("b").bias.trainable = False
    for design in ("2x4d", "1x6d"):
        ensemble = collegialize(model, design=design)
        copy = ensemble.get_layer("inside")
        flags = [each.trainable for each in (copy, *copy.layers[1:])]
        assert flags == [each.trainable for each in (inside, *inside.layers[1:])]
        assert not ensemble.get_layer("last").kernel.trainable
        assert not ensemble.get_layer("b").bias.trainable
        assert ensemble.get_layer("b").kernel.trainable
        assert len(ensemble.trainable_variables) == len(model.trainable_variables)


class OwnFunction(layers.Layer):
    """A layer with a function that reads its own variable."""

    def __init__(self, **options):
        super().__init__(**options)
        self.function = lambda x: x * self.factor
        self.unnamed = {}
        exec("def twice(x):\n    return 2 * x", self.unnamed)  # Of no module.
        self.twice = self.unnamed["twice"]

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        return self.function(self.twice(x))


def test_functions_that_read_a_layers_variables_are_each_copys_own():
    row = [keras.Input((6,)), OwnFunction(name="own"), hidden("a"), hidden("b"), layers.Dense(2)]
    model = keras.Sequential(row)
    ensemble = collegialize(model, design="2x4d", init="split", seed=0)
    model.get_layer("own").factor.assign(100.0)
    assert (ensemble.layers[0](np.ones((1, 6))).numpy() == 2).all()


class Scaled(keras.Model):
    """A functional model with a call of its own, and no constructor."""

    def call(self, x, training=None, mask=None):
        return super().call((x - 100.0) / 50.0, training=training, mask=mask)


class Backbone(Scaled):
    """Also with a constructor of its own."""

    def __init__(self, **options):
        x = keras.Input((6,))
        super().__init__(x, layers.Dense(4)(hidden("b")(hidden("a")(x))), **options)


def scaled(kind):
    if kind is Backbone:
        return Backbone()
    x = keras.Input((6,))
    return Scaled(x, layers.Dense(4)(hidden("b")(hidden("a")(x))))


@pytest.mark.parametrize("skip", [(), ("backbone*",)])
def test_a_model_inside_does_not_lose_its_call(skip):
    x = keras.Input((6,))
    outer = layers.Dense(2)(hidden("d")(hidden("c")(scaled(Backbone)(x))))
    with pytest.raises(ValueError, match=r"a Backbone inside the model, becomes a plain"):
        collegialize(keras.Model(x, outer), design="2x4d", skip=skip)


def test_models_with_a_call_of_their_own_are_not_calibrated_as_if_without(rng):
    images = rng.normal(100, 50, (50, 6)).astype("float32")
    options = {"design": "2x4d", "init": "calibrated", "data": images}
    with pytest.raises(ValueError, match=r"is a Scaled, whose call is its own; use init='split'"):
        collegialize(scaled(Scaled), **options)
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2)(scaled(Scaled)(x)))
    with pytest.raises(ValueError, match="or a model whose class has a call of its own"):
        collegialize(model, **options)
    assert inspect(model, design="2x4d").after.flops is None
    ensemble = collegialize(model, design="2x8d", init="split", seed=0)
    np.testing.assert_allclose(
        ensemble.predict(images, verbose=0), model.predict(images, verbose=0), 1e-4, 1e-5
    )


def test_a_wrapped_layer_that_is_used_again_is_named():
    again = layers.Dense(6, name="again")
    x = keras.Input((4, 6))
    y = layers.Dense(3)(hidden("b")(hidden("a")(again(layers.TimeDistributed(again)(x)))))
    with pytest.raises(ValueError, match=r"'again', inside 'time_distributed.*is used elsewh"):
        collegialize(keras.Model(x, y), design="2x4d")


def own_activation(x):
    return keras.ops.relu(x) ** 2


class Bare(layers.Layer):
    def __init__(self, size):
        super().__init__(name="bare")
        self.own = layers.Dense(size)

    def call(self, x):
        return self.own(x)


def test_functions_of_ones_own_are_kept_where_they_are():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, own_activation, name="first"),
            hidden("a"),
            hidden("b"),
            layers.Dense(2, own_activation, name="last"),
        ]
    )
    ensemble = collegialize(model, design="2x4d")
    for name in ("first", "last"):
        assert ensemble.get_layer(name).activation is own_activation


class Given(Bare):
    """Keras writes down what a constructor is given only where it is plain data."""

    def __init__(self, size, anything):
        super().__init__(size)
        self.anything = anything


def not_to_be_read_back():
    doubled = keras.Sequential([layers.Dense(6), layers.Lambda(lambda x: 2 * x)])
    return layers.TimeDistributed(doubled, name="doubled")


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Bare(6), r"'bare', a Bare, cannot be built again .*\(Error when deserializing"),
        (lambda: Given(6, object()), r"'bare', a Given, cannot .*\(Object Given was created by"),
        (not_to_be_read_back, r"'doubled', a TimeDistributed, cannot .*\(Requested the deserial"),
    ],
)
def test_a_layer_that_cannot_be_built_again_is_named_at_once(build, named):
    row = [layers.Reshape((1, 6)), build(), layers.Flatten()]
    model = keras.Sequential([keras.Input((6,)), *row, hidden("a"), hidden("b"), layers.Dense(2)])
    for asked in (inspect, collegialize):
        with pytest.raises(ValueError, match=f"model: layer {named}"):
            asked(model)


class OwnStep(keras.Sequential):
    pass


def test_a_lost_class_is_said(caplog):
    model = OwnStep([keras.Input((6,)), hidden("a"), hidden("b"), layers.Dense(2)])
    collegialize(model, design="2x4d")
    assert "is a OwnStep: its ensemble is a plain Sequential" in caplog.text


def test_a_layer_that_is_also_in_a_wrapper_is_not_torn_apart():
    shared, one, many = hidden("a"), keras.Input((6,)), keras.Input((5, 6))
    outputs = [layers.Dense(2)(hidden("b")(shared(one))), layers.TimeDistributed(shared)(many)]
    with pytest.raises(ValueError, match=r"'a', inside 'time_distributed.*is used elsewhere too"):
        deeper = layers.Dense(2)(hidden("e")(hidden("d")(outputs[0])))
        collegialize(keras.Model([one, many], [deeper, outputs[1]]))


def test_an_exit_must_be_plain():
    def build(**options):
        last = layers.Dense(2, name="c", **options)
        return keras.Sequential([keras.Input((6,)), hidden("a"), hidden("b"), last])

    assert inspect(build(activation="softmax"), design="2x4d").candidates
    assert not inspect(build(kernel_constraint="unit_norm"), design="2x4d").candidates
    quantised = build()
    quantised.get_layer("c").quantize("int8")
    assert not inspect(quantised, design="2x4d").candidates


def test_what_is_flattened_between_is_counted():
    model = keras.Sequential(
        [
            keras.Input((3, 3, 4)),
            hidden("a", 7),
            layers.Flatten(),
            layers.BatchNormalization(),
            hidden("b", 12),
            layers.Dense(2, name="c"),
        ]
    )
    ensemble = collegialize(model, design="2x4d")
    assert ensemble.report.after == inspect(model, design="2x4d").after
    assert ensemble.report.after.params == trained_parameters(ensemble)


def test_one_slope_for_all_channels_is_no_paths():
    image = keras.Input((4, 4, 6))
    x = layers.PReLU(shared_axes=[1, 2, 3])(layers.Conv2D(8, 1, name="a")(image))
    x = layers.Conv2D(6, 1)(layers.Conv2D(8, 3, padding="same")(x))
    (left, *_) = inspect(keras.Model(image, x)).skipped
    assert "has one slope for all channels" in left.reason


def test_groups_of_channels_do_not_shrink():
    groups = layers.GroupNormalization(4, name="groups")
    model = keras.Sequential([keras.Input((5,)), hidden("a"), groups, hidden("b"), layers.Dense(2)])
    ensemble = collegialize(model, design="2x4d")
    assert ensemble.get_layer("groups").groups == 4  # Of two channels each, as before.
    x = np.random.default_rng(0).normal(size=(4, 5))
    assert np.ptp(ensemble(x).numpy(), axis=0).min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "foo"}, "alpha: got 'foo'; it must be a positive number, 'fit'"),
        ({"alpha": True}, "alpha: got True"),
        ({"alpha": {1: 2.0}}, "alpha: got .* its keys are patterns"),
        ({"design": "2x4d", "budget": "foo"}, "budget: got 'foo'"),
        ({"design": "2x4d", "tolerance": -1}, "tolerance: got -1"),
        ({"only": [5]}, r"only: got \[5\]"),
    ],
)
def test_bad_arguments_whatever_the_model(options, message):
    nothing = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=message):
        inspect(nothing, **options)


def test_a_multiple_that_is_too_wide_leaves_the_chain():
    model = keras.Sequential([keras.Input((6,)), hidden("a"), hidden("b"), layers.Dense(2)])
    report = inspect(model, multiple_of=16)
    assert not report.candidates
    assert "too narrow for a width that is a multiple of 16" in report.skipped[0].reason


def test_what_cannot_be_timed_is_said_before():
    model = keras.Sequential([keras.Input((None, 6)), hidden("a"), hidden("b"), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"measure: the input .* a time needs numbers of fixed"):
        collegialize(model, measure=2)
    with pytest.raises(ValueError, match="measure: got True"):
        collegialize(model, measure=True)
    squared = layers.Lambda(lambda x: x**2)
    timed = keras.Sequential(
        [keras.Input((6,)), squared, hidden("a"), hidden("b"), layers.Dense(2)]
    )
    assert collegialize(timed, design="2x4d", measure=2).report.after.step_seconds > 0


def test_looking_at_a_model_leaves_its_graph_alone():
    model = keras.Sequential([keras.Input((6,)), hidden("a"), hidden("b"), layers.Dense(2)])
    outputs = [layer.output for layer in model.layers]
    inspect(model)
    assert all(layer.output is y for layer, y in zip(model.layers, outputs, strict=True))


def test_the_report_does_not_hold_the_model():
    import gc
    import weakref

    model = keras.Sequential([keras.Input((6,)), hidden("a"), hidden("b"), layers.Dense(2)])
    ensemble = collegialize(model, design="2x4d")
    old = weakref.ref(model.get_layer("a"))
    del model
    gc.collect()
    assert ensemble.report.candidates
    assert old() is None
