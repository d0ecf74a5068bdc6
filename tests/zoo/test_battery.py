"""What every network of the zoo must do.

The shapes of all of them are made and counted. What depends on the kind of network only is asked
of thin ones, and of all, at up to 64 pixels, with `--every-network`. Of the deep ones that is slow.
"""

import gc
import math
import re

import fresh
import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from ce_keras import geometry, zoo
from ce_keras.layers.flops import flops

ENTRIES = zoo.entries()
THIN = {
    "resnext11_2x3d": (28, 28, 1),
    "resnext29_2x2d": (32, 32, 3),
    "fully_connected_3x5d": (28, 28, 1),
    "wide_resnet10_1": (32, 32, 3),
}
SMALL = {
    "resnext11": (28, 28, 1),
    "fully_connected": (28, 28, 1),
    "resnext29": (32, 32, 3),
    "wide_resnet": (32, 32, 3),
}
FAST = ("resnext11_2x3d", "fully_connected_3x5d")
# An export traces a network three times.
FAST_EXPORTED = ("fully_connected_3x5d",)
EVERY = {entry.name: SMALL.get(entry.family, (64, 64, 3)) for entry in ENTRIES}


def asked_of(config):
    return EVERY if config.getoption("--every-network") else THIN


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        names = asked_of(metafunc.config)
        exported = metafunc.function is test_a_network_is_the_same_exported
        fast = FAST_EXPORTED if exported else FAST
        marks = [() if name in fast else pytest.mark.slow for name in names]
        cases = [pytest.param(name, marks=mark) for name, mark in zip(names, marks, strict=True)]
        metafunc.parametrize("name", cases)


def forget():
    """All networks together are more than a machine holds."""
    keras.backend.clear_session()
    gc.collect()


@pytest.fixture(autouse=True)
def _nothing_is_kept(request):
    yield
    if request.config.getoption("--every-network"):
        forget()


def thin(name, **options):
    shape = options.pop("input_shape", (THIN | EVERY)[name])
    if name == "wide_resnet10_1":
        return zoo.wide_resnet(shape, depth=10, widening=1, **options)
    return zoo.create(name, input_shape=shape, **options)


def operations(model):
    """Two for each multiply-add, counted layer by layer in the built model."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            total += 2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        elif isinstance(layer, keras.layers.Dense):
            total += 2 * math.prod(layer.kernel.shape)
    return total


def sized(entries):
    """Every network; the first of each family that is not deep belongs to the fast tests."""
    seen = set()
    for entry in entries:
        fast = entry.family not in seen and not re.search(r"(38|101|152)$", entry.family)
        seen.add(entry.family)
        yield pytest.param(entry, id=entry.name, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize("entry", sized(ENTRIES))
def test_every_network_is_of_the_size_it_should_be(entry):
    with keras.StatelessScope(initialize_variables=False):  # Shapes are all that is asked for.
        model = zoo.create(entry.name)
    if entry.family == "fully_connected":
        network = geometry.fully_connected(784, [200] * 5, 10)
        m, n = entry.design
        # What the theory leaves out: biases.
        biases = m * (5 * n + 10)
        assert zoo.trained_parameters(model) - biases == network.params(m, n)
    elif entry.family == "wide_resnet":
        assert zoo.trained_parameters(model) == 36_479_194  # 36.5 million in Table 1.
    else:
        network = geometry.resnext(entry.family.replace("resnet", "resnext"))
        assert zoo.trained_parameters(model) == network.params(*entry.design)
        assert operations(model) == network.flops(*entry.design)


def test_sizes_that_others_publish():
    """torchvision's counts, which have classifiers of a thousand classes too."""
    for name, count in {
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "resnet152": 60_192_808,
        "resnext50_32x4d": 25_028_904,
        "resnext101_32x8d": 88_791_336,
    }.items():
        family, _, design = name.replace("resnet", "resnext").rpartition("_")
        network = geometry.resnext(family or design)
        design = geometry.Design.parse(design) if family else (1, 64)
        assert network.params(*design) == count, name


def test_a_network_computes_trains_and_repeats_itself(name, rng):
    model = thin(name, seed=1)
    shape = model.input_shape[1:]
    for batch in (1, 3):
        outputs = model(rng.normal(size=(batch, *shape)).astype("float32"))
        assert outputs.shape == (batch, model.output_shape[-1])
        np.testing.assert_allclose(np.sum(outputs, axis=1), 1, rtol=1e-5)
    if not name.startswith("fully_connected"):
        larger = (shape[0] + 9, shape[1] + 9, shape[2])
        other = thin(name, input_shape=larger, seed=1)
        assert other(np.ones((2, *larger), "float32")).shape[0] == 2
    for one, again in zip(model.get_weights(), thin(name, seed=1).get_weights(), strict=True):
        np.testing.assert_array_equal(one, again)
    for dtype in (None, "mixed_bfloat16"):
        model = thin(name, seed=1, dtype=dtype)
        model.compile(keras.optimizers.SGD(0.002, 0.9), "sparse_categorical_crossentropy")
        x, y = rng.normal(size=(16, *shape)).astype("float32"), np.arange(16) % 10
        losses = [model.train_on_batch(x, y) for _ in range(8)]
        assert losses[-1] < losses[0], dtype
        assert model.output.dtype == "float32"


def test_a_network_is_the_same_exported(name, rng, tmp_path):
    model = thin(name, seed=2)
    x = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
    expected = model(x).numpy()

    def same(found):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)

    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    same(saved.serve(x))
    graph = saved.signatures["serving_default"].graph.as_graph_def()
    functions = [node for function in graph.library.function for node in function.node_def]
    attributes = {key for node in [*graph.node, *functions] for key in node.attr}
    assert "_XlaMustCompile" not in attributes, "it would compile wherever it is loaded"

    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    same(session.run(None, {session.get_inputs()[0].name: x})[0])

    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    lite = Interpreter(str(tmp_path / "model.tflite"))
    index = lite.get_input_details()[0]["index"]
    lite.resize_tensor_input(index, x.shape)
    lite.allocate_tensors()
    lite.set_tensor(index, x)
    lite.invoke()
    same(lite.get_tensor(lite.get_output_details()[0]["index"]))


LOAD = """
import sys
from pathlib import Path
import numpy as np
import ce_keras, keras
for file in Path(sys.argv[1]).glob("*.keras"):
    x = np.load(file.with_suffix(".x.npy"))
    np.save(file.with_suffix(".y.npy"), keras.models.load_model(file).predict(x, verbose=0))
    keras.backend.clear_session()
"""


@pytest.mark.slow
def test_networks_come_back_in_a_new_process(rng, tmp_path, pytestconfig):
    expected = {}
    for name, shape in asked_of(pytestconfig).items():
        model = thin(name, seed=3)
        x = rng.normal(size=(2, *shape)).astype("float32")
        expected[name] = model(x).numpy()
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.x.npy", x)
        for suffix in (".weights.h5", ".safetensors"):
            path = tmp_path / f"{name}{suffix}"
            (
                zoo.save_weights(model, path)
                if suffix == ".safetensors"
                else model.save_weights(path)
            )
            again = thin(name, seed=4, weights=path)
            np.testing.assert_array_equal(again(x), expected[name])
            path.unlink()  # Of every network they are gigabytes.
        del model, again
        forget()
    fresh.run(["-c", LOAD, tmp_path])
    for name, outputs in expected.items():
        found = np.load(tmp_path / f"{name}.y.npy")
        np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-6)


def test_features_of_all_stages():
    model = zoo.create("resnext50_2x2d", features_only=True, input_shape=(64, 96, 3), seed=0)
    shapes = {level: tensor.shape[1:] for level, tensor in model.output.items()}
    assert shapes == {f"P{k}": (64 >> k, 96 >> k, 64 << k) for k in (2, 3, 4, 5)}
    whole = zoo.create("resnext50_2x2d", include_top=False, input_shape=(64, 96, 3), seed=0)
    x = np.ones((1, 64, 96, 3), "float32")
    np.testing.assert_allclose(model(x)["P5"], whole(x), rtol=1e-5)
    with pytest.raises(ValueError, match="pooling: got 'avg'; there is none of feature maps"):
        zoo.resnext11(features_only=True, pooling="avg")


def test_weights_without_the_classifier(tmp_path, rng):
    trained = zoo.create("resnext11_2x3d", seed=0)
    zoo.save_weights(trained, tmp_path / "a.safetensors")
    trained.save_weights(tmp_path / "a.weights.h5")
    x = rng.normal(size=(1, 28, 28, 1)).astype("float32")
    inner = keras.Model(trained.input, trained.get_layer("conv4_block1_out").output)
    for name in ("a.safetensors", "a.weights.h5"):
        options = {"include_top": False, "input_shape": (28, 28, 1), "weights": tmp_path / name}
        np.testing.assert_allclose(zoo.create("resnext11_2x3d", **options)(x), inner(x), rtol=1e-5)


def test_names_that_two_variables_have_are_refused(tmp_path):
    image = keras.Input((28, 28, 1))
    members = [zoo.create("fully_connected_2x3d", name=name) for name in "ab"]
    both = keras.Model(image, keras.layers.Average()([member(image) for member in members]))
    with pytest.raises(ValueError, match=r"variables of .* names"):
        zoo.save_weights(both, tmp_path / "a.safetensors")


def test_published_weights_are_of_the_design_whatever_the_name():
    named, plain = (
        zoo.resnext11(mode="dual", weights="fashion_mnist", name=name) for name in ("mine", None)
    )
    assert named.name == "mine"
    np.testing.assert_array_equal(named.get_weights()[0], plain.get_weights()[0])


def test_flops_of_what_is_not_known_are_not_guessed():
    x = keras.Input((4, 6))
    model = keras.Model(x, keras.layers.MultiHeadAttention(2, 3)(x, x))
    with pytest.raises(ValueError, match=r"model: the FLOPs of .* are not known"):
        flops(model)
    with pytest.raises(ValueError, match="has outputs of unknown size"):
        flops(zoo.create("resnext11_2x2d", include_top=False))
    separable = keras.layers.SeparableConv2D(5, 3, depth_multiplier=2, padding="same")
    model = keras.Sequential([keras.Input((4, 4, 3)), separable])
    assert flops(model) == 2 * 16 * (6 * 9 + 5 * 6)


@pytest.mark.parametrize("suffix", [".weights.h5", ".safetensors"])
def test_weights_of_a_network_on_other_layers(suffix, tmp_path, rng):
    """A file is of the network, not of what its `input_tensor` is the output of."""
    trained, path = zoo.create("resnext11_2x3d", seed=0), tmp_path / f"a{suffix}"
    zoo.save_weights(trained, path) if suffix == ".safetensors" else trained.save_weights(path)
    image = keras.Input((28, 28, 3))
    grey = keras.layers.Conv2D(1, 1, name="grey")(image)
    whole = zoo.create("resnext11_2x3d", input_tensor=grey, seed=1, weights=path)
    x = rng.normal(size=(2, 28, 28, 3)).astype("float32")
    np.testing.assert_allclose(whole(x), trained(whole.get_layer("grey")(x)), rtol=1e-5)


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    path = tmp_path / "a.weights.h5"
    zoo.create("resnext11_2x3d", classes=7, seed=0).save_weights(path)
    model = zoo.create("resnext11_2x3d", seed=1)
    before = model.get_weights()
    with pytest.raises(ValueError, match="does not fit"):
        zoo.load_weights(model, path)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_that_do_not_fit(tmp_path):
    zoo.create("resnext11_2x4d").save_weights(tmp_path / "b.weights.h5")
    with pytest.raises(ValueError, match=r"shape|does not fit"):
        zoo.create("resnext11_1x6d", include_top=False, weights=tmp_path / "b.weights.h5")
    path = tmp_path / "a.safetensors"
    zoo.save_weights(zoo.create("resnext11_2x3d", classes=7), path)
    with pytest.raises(ValueError, match=r"predictions/kernel has shape .*give classes=7, or"):
        zoo.create("resnext11_2x3d", weights=path)
    with pytest.raises(ValueError, match=r"conv2_block1_1_conv/kernel has shape \(1, 1, 32, 6\)"):
        zoo.create("resnext11_2x4d", classes=7, weights=path)
    with pytest.raises(ValueError, match=r"a.safetensors: lacks .* is it of another network"):
        zoo.create("resnext29_2x3d", classes=7, weights=path)
    with pytest.raises(
        ValueError, match="weights: there are none of 'resnext11_2x3d' called 'imagenet'"
    ):
        zoo.create("resnext11_2x3d", weights="imagenet")


def test_names():
    assert "resnext50_12x10d" in zoo.list_models("resnext50*")
    assert len(zoo.list_models()) == len(ENTRIES)
    assert zoo.create("resnet50", include_top=False).name == "resnet50_1x64d"
    with pytest.raises(ValueError, match=r"name: got 'resnet5'; did you mean 'resnet50'\?"):
        zoo.create("resnet5")
    with pytest.raises(ValueError, match="depth: got 27; it must be 10, 16"):
        zoo.wide_resnet(depth=27)


def test_images_are_normalised_for_what_they_are_shown_to(rng):
    x = rng.uniform(0, 255, (2, 4, 5, 3)).astype("float32")
    theirs = keras.applications.imagenet_utils.preprocess_input(x.copy(), mode="torch")
    np.testing.assert_allclose(zoo.preprocess_input(x), theirs, atol=2e-3)
    first = zoo.preprocess_input(np.moveaxis(x, -1, 1), "channels_first")
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), theirs, atol=2e-3)
    np.testing.assert_allclose(zoo.preprocess_input(tf.constant(x)), theirs, atol=2e-3)
    whole = x.astype("uint8")
    found = zoo.preprocess_input(tf.constant(whole))
    np.testing.assert_allclose(found, zoo.preprocess_input(whole), atol=1e-5)
    with pytest.raises(ValueError, match="must have 3 channels"):
        zoo.preprocess_input(np.zeros((2, 28, 28, 1)))
    with pytest.raises(ValueError, match="weights: got 'a'; published are"):
        zoo.preprocess_input(x, weights="a")
