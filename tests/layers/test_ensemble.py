"""An ensemble is the sum of its members, grouped or copied, saved and loaded."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from members import (
    batch,
    convolutional,
    feature_map,
    grouped,
    ntk_perceptron,
    perceptron,
    softmax_member,
)

from ce_keras import zoo
from ce_keras.layers import CollegialEnsemble
from ce_keras.layers.ensemble import configuration


@grouped
@pytest.mark.parametrize("cardinality", [1, 4])
def test_grouped_members_sum_to_the_ensemble(build_member, cardinality, rng):
    ensemble = CollegialEnsemble(build_member, cardinality)
    assert ensemble.grouped, ensemble.why_copies
    x = batch(build_member, rng)
    members = [ensemble.get_member(path) for path in range(cardinality)]
    expected = sum(member(x) for member in members) / np.sqrt(cardinality)
    np.testing.assert_allclose(ensemble(x), expected, rtol=1e-4, atol=1e-5)


@grouped
def test_grouped_and_copied_ensembles_are_one_function_and_train_alike(build_member, rng):
    together = CollegialEnsemble(build_member, 3)
    apart = CollegialEnsemble(build_member, 3, grouped=False)
    assert not apart.grouped
    for path in range(3):
        apart.set_member(path, together.get_member(path))
    x = batch(build_member, rng)
    results = []
    for ensemble in (together, apart):
        with tf.GradientTape() as tape:
            y = ensemble(x, training=True)
            loss = tf.reduce_mean(y**2)
        weights = ensemble.trainable_weights
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(0.1 * gradient)
        results.append(y)
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
    for path in range(3):
        for a, b in zip(
            together.get_member(path).get_weights(),
            apart.get_member(path).get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@grouped
def test_members_are_independent(build_member):
    for ensemble in (CollegialEnsemble(build_member, 3), CollegialEnsemble(build_member, 3, False)):
        kernels = [ensemble.get_member(path).get_weights()[0].tobytes() for path in range(3)]
        assert len(set(kernels)) == 3


def test_members_are_independent_even_if_the_member_fixes_its_seeds():
    def build_member():
        initializer = keras.initializers.HeNormal(seed=7)
        return keras.Sequential(
            [keras.Input((6,)), layers.Dense(5, kernel_initializer=initializer), layers.Dense(2)]
        )

    for choice in (True, False):
        twice = [CollegialEnsemble(build_member, 3, grouped=choice) for _ in range(2)]
        kernels = [[e.get_member(path).get_weights()[0] for path in range(3)] for e in twice]
        assert len({kernel.tobytes() for kernel in kernels[0]}) == 3
        np.testing.assert_array_equal(*kernels)


def test_a_members_weights_can_be_set(rng):
    ensemble = CollegialEnsemble(convolutional, 3)
    member = convolutional()
    others = [ensemble.get_member(path).get_weights() for path in (0, 2)]
    ensemble.set_member(1, member)
    x = batch(convolutional, rng)
    np.testing.assert_allclose(ensemble.get_member(1)(x), member(x), rtol=1e-5)
    for path, weights in zip((0, 2), others, strict=True):
        for a, b in zip(ensemble.get_member(path).get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_ensembles_kernel_is_the_mean_of_the_members_kernels(rng):
    # Eq. 4, right: the reason for dividing by the root of the number of members.
    ensemble = CollegialEnsemble(ntk_perceptron, 5)
    x = tf.constant(batch(ntk_perceptron, rng, 2))

    def kernel(model):
        with tf.GradientTape() as tape:
            y = model(x)[:, 0]
        rows = tape.jacobian(y, [weight.value for weight in model.trainable_weights])
        rows = tf.concat([tf.reshape(row, (2, -1)) for row in rows], axis=1)
        return rows @ tf.transpose(rows)

    members = [kernel(ensemble.get_member(path)) for path in range(5)]
    np.testing.assert_allclose(kernel(ensemble), sum(members) / 5, rtol=1e-4)


@pytest.mark.parametrize("build_member", [convolutional, softmax_member])
def test_round_trip_through_a_file(build_member, tmp_path, rng):
    member = build_member()
    inputs = keras.Input(member.input_shape[1:])
    model = keras.Model(inputs, CollegialEnsemble(member, 3)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = batch(build_member, rng)
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    configs = [json.dumps(m.layers[-1].get_config(), sort_keys=True) for m in (loaded, model)]
    assert configs[0] == configs[1]


def two_ways_member():
    left, right = keras.Input((3,)), keras.Input((4,))
    x = layers.Concatenate()([left, right])
    return keras.Model([left, right], {"sum": layers.Dense(2)(x), "other": layers.Dense(3)(x)})


def test_members_of_several_inputs_and_outputs(rng):
    ensemble = CollegialEnsemble(two_ways_member, 3)
    assert "one input and one output" in ensemble.why_copies
    inputs = [rng.standard_normal((5, size)).astype("float32") for size in (3, 4)]
    members = [ensemble.get_member(path)(inputs) for path in range(3)]
    outputs = ensemble(inputs)
    for name in ("sum", "other"):
        expected = sum(member[name] for member in members) / np.sqrt(3)
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-6)
    symbolic = ensemble([keras.Input((3,)), keras.Input((4,))])
    assert {name: value.shape for name, value in symbolic.items()} == {
        "sum": (None, 2),
        "other": (None, 3),
    }


def test_a_function_named_like_one_of_keras_stays_what_it_is():
    """Keras would write it down as its own."""

    def relu(x):
        return -x

    def build_member():
        return keras.Sequential([keras.Input((3,)), layers.Dense(2, activation=relu)])

    assert configuration(build_member()) is None
    ensemble = CollegialEnsemble(build_member, 2, grouped=False)
    x = np.ones((1, 3), "float32")
    expected = -sum(x @ member.layers[0].kernel.numpy() for member in ensemble.members)
    np.testing.assert_allclose(ensemble(x), expected / np.sqrt(2), rtol=1e-5)


def test_our_own_networks_are_grouped(rng):
    def build_member():
        return zoo.resnext11(mode="dual", include_top=False, input_shape=(16, 16, 1))

    # Its bottlenecks' first convolutions are wide, the others have paths: all have a grouped form.
    ensemble = CollegialEnsemble(build_member, 2, grouped=True)
    x = rng.standard_normal((2, 16, 16, 1)).astype("float32")
    expected = sum(ensemble.get_member(path)(x) for path in range(2)) / np.sqrt(2)
    np.testing.assert_allclose(ensemble(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("choice", [True, False], ids=["grouped", "copies"])
def test_the_data_type_is_the_members(choice, rng):
    def build_member():
        return keras.Sequential(
            [
                keras.Input((4, 4, 2), dtype="float64"),
                layers.Conv2D(3, 3, dtype="float64"),
                layers.Flatten(dtype="float64"),
                layers.Dense(2, dtype="float64"),
            ]
        )

    ensemble = CollegialEnsemble(build_member, 2, grouped=choice)
    assert ensemble(rng.standard_normal((1, 4, 4, 2))).dtype == "float64"
    assert ensemble(keras.Input((4, 4, 2))).dtype == "float64"


def test_a_member_that_is_not_there():
    ensemble = CollegialEnsemble(perceptron, 2)
    for act in (ensemble.get_member, lambda path: ensemble.set_member(path, perceptron())):
        with pytest.raises(ValueError, match="path: got 2; members are 0 to 1"):
            act(2)


def test_an_ensemble_trains_with_fit(rng):
    model = keras.Sequential([keras.Input((6,)), CollegialEnsemble(perceptron, 8)])
    model.compile("adam", "mse")
    x = rng.standard_normal((256, 6)).astype("float32")
    y = x[:, :2] * x[:, 2:4]
    losses = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_an_ensembles_output_may_be_intermediate(rng):
    image = keras.Input((8, 8, 3))
    x = CollegialEnsemble(feature_map, 4)(image)
    assert x.shape == (None, 6, 6, 5)
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    assert model(batch(feature_map, rng)).shape == (3, 2)


@pytest.mark.parametrize(
    ("member", "cardinality", "message"),
    [
        (perceptron, 0, "cardinality: got 0"),
        (perceptron, 2.0, "cardinality: got 2.0"),
        (lambda: "model", 2, "build_member: got 'model'"),
    ],
)
def test_bad_members(member, cardinality, message):
    with pytest.raises(ValueError, match=message):
        CollegialEnsemble(member, cardinality)


def normalised(data):
    norm = layers.Normalization()
    norm.adapt(data)
    return keras.Sequential([keras.Input((3,)), norm, layers.Dense(2, kernel_initializer="ones")])


def looked_up(_):
    table = layers.StringLookup(output_mode="one_hot")
    table.adapt(np.array(["a", "b", "c"]))
    dense = layers.Dense(2, kernel_initializer="ones")
    return keras.Sequential([keras.Input((1,), dtype="string"), table, dense])


def vectorised(_):
    words = layers.TextVectorization(output_mode="tf_idf")
    words.adapt(np.array(["a b", "b c c", "d"]))
    dense = layers.Dense(2, kernel_initializer="ones")
    return keras.Sequential([keras.Input((1,), dtype="string"), words, dense])


def discretised(data):
    bins = layers.Discretization(num_bins=3, output_mode="multi_hot")
    bins.adapt(data)
    return keras.Sequential([keras.Input((3,)), bins, layers.Dense(2, kernel_initializer="ones")])


@pytest.mark.parametrize("adapted", [normalised, looked_up, vectorised, discretised])
def test_members_keep_what_their_layers_were_adapted_to(adapted, rng, tmp_path):
    data = rng.normal(100, 30, (50, 3)).astype("float32")
    member = adapted(data)
    x = data[:4] if member.input_shape == (None, 3) else np.array([["a"], ["b"], ["c"], ["e"]])
    x = keras.ops.convert_to_tensor(x) if x.dtype.kind == "f" else tf.constant(x)
    ensemble = CollegialEnsemble(member, 4)
    expected = member(x).numpy() * 4 / 2
    np.testing.assert_allclose(ensemble(x), expected, rtol=1e-5)
    np.testing.assert_allclose(ensemble.get_member(2)(x), member(x), rtol=1e-5)
    inputs = keras.Input(member.input_shape[1:], dtype=member.inputs[0].dtype)
    model = keras.Model(inputs, ensemble(inputs))
    if adapted in (normalised, looked_up):  # Keras itself saves no bins, and no sizes of tables.
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(again(x), expected, rtol=1e-5)


def test_a_saved_configuration_names_a_model_and_nothing_else():
    config = CollegialEnsemble(perceptron, 2).get_config()
    for module, name in (
        ("keras.utils", "clear_session"),
        ("keras.applications", "ResNet50"),
        ("keras.activations", "relu"),
    ):
        config["build_member"] = {
            "module": module,
            "class_name": "function",
            "config": name,
            "registered_name": "function",
        }
        with pytest.raises(
            (ValueError, TypeError),
            match=r"build_member: got|Could not (locate|deserialize)|Cannot deserialize",
        ):
            CollegialEnsemble.from_config(config)
    config["build_member"] = keras.saving.serialize_keras_object(keras.activations.relu)
    with pytest.raises(ValueError, match=r"build_member: got .* from a saved configuration"):
        CollegialEnsemble.from_config(config)


@pytest.mark.parametrize("cardinality", [10**30, 2**40, 0, 1.5, True])
def test_absurd_cardinalities_are_refused_at_once(cardinality):
    with pytest.raises(ValueError, match="cardinality: got"):
        CollegialEnsemble(perceptron(), cardinality)
