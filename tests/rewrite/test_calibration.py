"""New models that start from a trained model's function, fitted on images without labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rewritable import BUILDERS, hidden, inputs_of, mlp
from test_splitting import shaken, split_models

from ce_keras import collegialize
from ce_keras.rewrite.calibration.data import read_images
from ce_keras.rewrite.calibration.graph import Activations, FlatGraph
from ce_keras.rewrite.calibration.solve import LeastSquares, drawn_positions, patches_at, windows


def error_of(new, model, x):
    wanted = model.predict(x, verbose=0)
    return np.linalg.norm(new.predict(x, verbose=0) - wanted) / np.linalg.norm(
        wanted - wanted.mean(0)
    )


@pytest.mark.parametrize(("name", "model"), list(split_models()))
def test_paths_as_wide_as_the_model_keep_its_function(name, model, rng):
    shaken(model, rng)
    x = rng.normal(size=(150, *model.input_shape[1:])).astype("float32")
    design = (2, 8 if name == "convolutional" else 14)
    report = (new := collegialize(model, design=design, init="calibrated", data=x)).report
    assert report.calibration.error < 1e-3
    fresh = rng.normal(size=(50, *model.input_shape[1:])).astype("float32")
    assert error_of(new, model, fresh) < 1e-3


def test_the_exit_is_the_ridge_regression_on_its_own_inputs(rng, monkeypatch):
    # Before the layers are trained together.
    monkeypatch.setattr("ce_keras.rewrite.calibration.calibrate.reconstruct", lambda *_: None)
    model = shaken(mlp(), rng)
    x = rng.normal(size=(200, 12)).astype("float32")
    new = collegialize(model, design="2x16d", init="calibrated", data=x, seed=3)
    images = read_images(model, x, 3)
    fit = np.concatenate([images.inputs[batch][0] for batch in images.fit]).astype("float64")
    hidden = keras.Model(new.inputs, new.layers[-2].output)
    read = hidden.predict(fit, verbose=0).astype("float64")
    logits = keras.Model(model.inputs, model.layers[-2].output).predict(fit, verbose=0)
    logits = logits.astype("float64") @ model.layers[-1].kernel.numpy() + model.layers[-1].bias
    centred = read - read.mean(0)
    gram = centred.T @ centred / len(fit)
    found = new.layers[-1].kernel.numpy() / np.sqrt(2)
    slope = centred.T @ (logits - logits.mean(0)) / len(fit) - gram @ found
    # Where the sum of the squares and of the ridge is least, the slopes of both cancel: the ridge
    # pulls towards the model's own weights, made larger for the units that are left out.
    start = found - slope / (1e-3 * np.diag(gram).mean())
    kernel = model.layers[-1].kernel.numpy()
    rows = start / ((len(kernel) / 16) ** 0.75 / 2)
    away = np.linalg.norm(rows[:, None] - kernel, axis=-1).min(1)
    assert (away < 0.02 * np.linalg.norm(rows, axis=-1)).all(), away


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("strides", "dilation"), [((1, 1), (1, 2)), ((2, 3), (1, 1))])
def test_patches_are_what_a_convolution_reads(padding, strides, dilation, rng):
    layer = layers.Conv2D(
        4, (3, 2), strides=strides, dilation_rate=dilation, padding=padding, use_bias=False
    )
    x = rng.normal(size=(2, 9, 8, 3)).astype("float32")
    wanted = layer(x).numpy()
    view = windows(x, layer)
    assert view.shape[1:3] == wanted.shape[1:3]
    where = drawn_positions(view, 7, rng)
    rows = patches_at(view, where).reshape(2, len(where), -1) @ layer.kernel.numpy().reshape(-1, 4)
    np.testing.assert_allclose(rows, wanted.reshape(2, -1, 4)[:, where], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=() if each == "squeezed" else pytest.mark.slow)
        for each in sorted(set(BUILDERS) - {"baseline_of_the_zoo"})
    ],
)
def test_every_kind_of_model_comes_nearer_than_by_a_split(name, rng):
    model = shaken(BUILDERS[name](), rng)
    x = inputs_of(model, rng, batch=100)
    options = {"design": "2x8d", "alpha": 2.0, "seed": 0}
    split = collegialize(model, init="split", **options)
    new = collegialize(model, init="calibrated", data=x, **options)
    wanted, near, far = (
        np.concatenate([np.ravel(out) for out in keras.tree.flatten(each.predict(x, verbose=0))])
        for each in (model, new, split)
    )
    assert np.linalg.norm(near - wanted) <= np.linalg.norm(far - wanted)
    blocks = new.report.calibration.blocks
    assert len(blocks) == len(new.report.candidates)
    assert all(block.after < block.before for block in blocks)


def test_the_same_seed_and_images_give_the_same_weights(rng):
    model = shaken(mlp(), rng)
    x = rng.normal(size=(60, 12)).astype("float32")
    labels = np.zeros(60)
    batches = tf.data.Dataset.from_tensor_slices((x, labels)).batch(7)
    one, again, batched, other = (
        collegialize(model, design="3x8d", init="calibrated", data=data, seed=seed).get_weights()
        for data, seed in ((x, 1), (x, 1), (batches, 1), (x, 2))
    )
    for mine, same, too in zip(one, again, batched, strict=True):
        np.testing.assert_array_equal(mine, same)
        np.testing.assert_array_equal(mine, too)
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_least_squares_of_batches_are_those_of_all_rows(rng):
    x, y = rng.normal(size=(90, 5)) + 2, rng.normal(size=(90, 2))
    sums = LeastSquares(centred=True)
    for part in range(0, 90, 25):
        sums.add(x[part : part + 25], y[part : part + 25])
    weights, intercepts = sums.solve(ridge=0)
    wanted, *_ = np.linalg.lstsq(np.c_[x, np.ones(90)], y)
    np.testing.assert_allclose([*weights, intercepts], wanted, rtol=1e-8)


def test_activations_are_the_models_own_from_wherever_they_are_kept(rng):
    model = BUILDERS["nested"]()
    x = inputs_of(model, rng)
    flat = [x[tensor.name] for tensor in model.inputs]
    own = Activations(model, [flat])
    wanted = keras.tree.flatten(model(x))
    for layer in (model.get_layer("tower").layers[-1], model.get_layer("out")):
        own.advance(layer)
        for found, want in zip(next(own.values(own.graph.outputs, [0])), wanted, strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((20, 11)), "needs numbers of shape .images, 12"),
        (np.zeros((4, 12)), "got 4 images; at least 10"),
        (np.full((20, 12), np.nan), "infinite or NaN"),
        ("images", "got 'images'; it must be an array"),
        ([], "got no images"),
        ({"x": np.zeros((20, 12))}, "the model's inputs are"),
        (None, "data: got None and init='calibrated'"),
        ((np.zeros((20, 12)), np.zeros((20, 12))), "got a tuple of 2 arrays, as of images and"),
        ([np.zeros((20, 12)), np.zeros((20, 11))], "needs numbers of shape .images, 12"),
        (np.full((20, 12), 1e30, "float32"), "activations are infinite, NaN or too large on some"),
    ],
)
def test_images_that_do_not_fit_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        collegialize(mlp(), design="2x8d", init="calibrated", data=data)


def test_one_image_without_finite_activations_is_not_fitted_to(rng):
    def standardised(x):
        return (x - keras.ops.mean(x, -1, keepdims=True)) / keras.ops.std(x, -1, keepdims=True)

    row = [layers.Lambda(standardised), hidden("a", 16), hidden("b", 16), layers.Dense(3)]
    model = keras.Sequential([keras.Input((10,)), *row])
    images = rng.normal(size=(100, 10)).astype("float32")
    images[5] = 0
    with pytest.raises(ValueError, match="activations are infinite, NaN or too large on some"):
        collegialize(model, design="2x8d", init="calibrated", data=images)


def test_batches_of_several_sizes_are_named(rng):
    x = keras.Input((None, None, 3))
    row = [layers.Conv2D(8, 3, padding="same", name=name) for name in "abc"]
    model = keras.Model(x, row[2](layers.ReLU()(row[1](layers.ReLU()(row[0](x))))))
    batches = [rng.normal(size=(10, side, side, 3)) for side in (6, 8)]
    with pytest.raises(ValueError, match=r"images of shapes \(6, 6, 3\) and \(8, 8, 3\)"):
        collegialize(model, design="2x4d", init="calibrated", data=batches)


def test_a_model_of_a_fixed_batch_is_calibrated_in_such_batches(rng):
    model = keras.Sequential([keras.Input(batch_shape=(8, 12)), *mlp().layers])
    images = rng.normal(size=(60, 12)).astype("float32")
    found = read_images(model, images, 0)
    assert [len(batch) for (batch,) in found.inputs] == [8] * 7
    assert (found.fit, found.held_out) == (range(6), range(6, 7))
    new = collegialize(model, design="2x64d", init="calibrated", data=images, seed=0)
    assert new.report.calibration.error < 1e-3
    with pytest.raises(ValueError, match="got 15 images; the model's batches have 8, and two are"):
        read_images(model, images[:15], 0)


def test_outputs_that_are_not_finite_are_not_fitted_to(rng):
    x = keras.Input((12,))
    inner = layers.Dense(4, "relu")(hidden("b", 16)(hidden("a", 16)(x)))
    model = keras.Model(x, layers.Lambda(keras.ops.log)(inner))
    images = rng.normal(size=(50, 12)).astype("float32")
    with pytest.raises(ValueError, match="activations are infinite, NaN or too large on some"):
        collegialize(model, design="2x8d", init="calibrated", data=images)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}])
def test_a_normalisation_behind_an_activation_is_fitted(options, rng):
    row: list = [keras.Input((12,))]
    for name in "ab":
        row += [layers.Dense(24, "relu", name=name), layers.BatchNormalization(**options)]
    model = shaken(keras.Sequential([*row, layers.Dense(3)]), rng)
    images = rng.normal(size=(200, 12)).astype("float32")
    new = collegialize(model, design="3x5d", init="calibrated", data=images, seed=0)
    split = collegialize(model, design="3x5d", init="split", seed=0)
    assert error_of(new, model, images) < error_of(split, model, images)
    norms = [layer for layer in new.layers if isinstance(layer, layers.BatchNormalization)]
    begun = [layer for layer in split.layers if isinstance(layer, layers.BatchNormalization)]
    means = [np.sort(each.moving_mean.numpy()) for each in (norms[0], begun[0])]
    assert abs(means[0] - means[1]).max() > 0


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_batches_of_a_pytorch_loader_and_dictionaries_by_the_models_keys_are_read(rng):
    images = rng.normal(size=(40, 12)).astype("float32")
    loader = [[images[:20], np.zeros(20)], [images[20:], np.zeros(20)]]
    found = read_images(mlp(), loader, 0)
    assert sum(len(batch) for (batch,) in found.inputs) == 40
    assert len(read_images(mlp(), (images,), 0).inputs[0][0]) == 32
    x, y = keras.Input((12,), name="first"), keras.Input((3,), name="second")
    model = keras.Model({"za": x, "ab": y}, layers.Dense(2)(layers.Concatenate()([x, y])))
    other = rng.normal(size=(40, 3)).astype("float32")
    found = read_images(model, {"ab": other, "za": images}, 0)
    wanted = [tuple(each.shape[1:]) for each in model.inputs]
    assert [each.shape[1:] for each in found.inputs[0]] == wanted
    loader = [[[other, images], np.zeros(40)]]
    assert [each.shape[1:] for each in read_images(model, loader, 0).inputs[0]] == wanted


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
@pytest.mark.parametrize("design", ["2x24d", "3x5d", "1x10d"])
def test_dense_layers_with_normalisations_are_calibrated(options, design, rng):
    row: list = [keras.Input((12,))]
    for _ in range(2):
        row += [layers.Dense(24), layers.BatchNormalization(**options), layers.ReLU()]
    model = shaken(keras.Sequential([*row, layers.Dense(3)]), rng)
    images = rng.normal(size=(200, 12)).astype("float32")
    fresh = rng.normal(size=(100, 12)).astype("float32")
    new = collegialize(model, design=design, init="calibrated", data=images, seed=0)
    found = error_of(new, model, fresh)
    if design == "2x24d":
        assert found < 1e-3  # Paths as wide as the model's.
    else:
        assert found < error_of(collegialize(model, design=design, init="split"), model, fresh)


def test_designs_of_one_size_are_compared_and_the_nearest_is_returned(rng, monkeypatch):
    model = shaken(mlp(), rng)
    x = rng.normal(size=(100, 12)).astype("float32")
    new = collegialize(model, "dual", design="calibrated", data=x, seed=0)
    compared = new.report.calibration.compared
    assert {each.design.partition("x")[0] for each in compared} >= {"1", "2", "4"}
    assert [each.error for each in compared] == sorted(each.error for each in compared)
    wanted = collegialize(model, "dual").count_params()
    assert all(abs(each.params / wanted - 1) < 0.1 for each in compared)
    best = collegialize(model, design=compared[0].design, init="calibrated", data=x, seed=0)
    assert best.report.calibration.error == new.report.calibration.error
    # They are compared before the layers of the winner are trained together.
    monkeypatch.setattr("ce_keras.rewrite.calibration.calibrate.reconstruct", lambda *_: None)
    fitted = collegialize(model, design=compared[0].design, init="calibrated", data=x, seed=0)
    assert fitted.report.calibration.error == compared[0].error
    np.testing.assert_array_equal(best.predict(x, verbose=0), new.predict(x, verbose=0))
    assert "top-1 agreement" in repr(new.report)
    assert new.report.to_dict()["calibration"]["compared"][0]["design"] == compared[0].design
    with pytest.raises(ValueError, match="init: got 'split'; design='calibrated' needs"):
        collegialize(model, design="calibrated", init="split")


def test_a_narrower_network_is_made_of_the_models_own_kinds_of_layers(rng):
    model = BUILDERS["squeezed"]()
    narrower = collegialize(model, design="1x8d")
    kinds = [[type(layer) for layer in each.layers] for each in (model, narrower)]
    assert kinds[0] == kinds[1]
    assert narrower.get_layer("a_2_conv").kernel.shape == (3, 3, 8, 8)


def test_a_comparison_needs_a_size_below_the_models(rng):
    model = keras.Sequential(
        [keras.Input((8,)), *(keras.layers.Dense(16, "relu") for _ in range(2))]
    )
    x = rng.normal(size=(64, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"design: 'calibrated' compares networks smaller"):
        collegialize(model, design="calibrated", data=x)
    # A dual that is larger: the model itself would be the nearest.
    hidden = [layers.Dense(100, "relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10)])
    message = r"which has 109,810 parameters; the optimum has 126,730\. Give a target below 1"
    with pytest.raises(ValueError, match=message):
        collegialize(model, "dual", design="calibrated", data=np.zeros((64, 784)))


def test_a_model_inside_is_followed_by_the_names_of_its_inputs(rng):
    first, second = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    inner = keras.Model([first, second], layers.Subtract()([first, second]))
    x, y = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([x, y], inner({"z": x, "a": y}))
    flat = FlatGraph(model)
    given = [rng.normal(size=(2, 3)).astype("float32") for _ in range(2)]
    (found,) = keras.tree.flatten(keras.Model(flat.inputs, flat.outputs)(given))
    np.testing.assert_allclose(found, model(given))
