"""Trained classifiers made smaller, from a file to a file."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image

from ce_keras.cli import main
from ce_keras.training import compressing, datasets, write_idx
from ce_keras.training.compressing import compress


def saved(path, shape, widths, classes=10, activation="softmax"):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(width, "relu") for width in widths]
    steps = [layers.Rescaling(1 / 255), layers.Flatten(), *hidden]
    steps += [layers.Dense(classes, activation)]
    keras.Sequential([keras.Input(shape), *steps]).save(path)
    return path


@pytest.fixture
def classifier(tmp_path):
    return saved(tmp_path / "model.keras", (32, 32, 3), (16, 16))


@pytest.fixture
def stop(monkeypatch):
    """Run a call that is stopped in its second epoch."""
    fit = keras.distillation.Distiller.fit

    def stopped(self, *arguments, epochs=0, **named):
        if epochs == 2:
            raise KeyboardInterrupt
        return fit(self, *arguments, epochs=epochs, **named)

    def stop(*arguments, **options):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(keras.distillation.Distiller, "fit", stopped)
            compress(*arguments, **options)

    return stop


def weights_of(path):
    return keras.models.load_model(path).get_weights()


def never(*_, **__):
    raise AssertionError("called again, or too early")


@pytest.mark.slow
def test_a_stopped_compression_goes_on_to_the_same_end(
    classifier, colour_images, tmp_path, monkeypatch, stop
):
    options = {"design": "2x8d", "epochs": 2, "images": 60, "batch_size": 50}
    found = compress(classifier, colour_images, tmp_path / "whole.keras", **options)
    assert found.params[1] < found.params[0]
    assert 0 <= found.agreement <= 100
    stop(classifier, colour_images, tmp_path / "parts.keras", **options)
    assert not (tmp_path / "parts.keras").exists()
    with monkeypatch.context() as patch:
        patch.setattr(compressing, "load_dataset", never)  # It is said before images are read.
        with pytest.raises(ValueError, match="was begun with other arguments"):
            compress(classifier, colour_images, tmp_path / "parts.keras", **options, seed=1)
    epochs = []
    monkeypatch.setattr(compressing, "inspect", never)  # Nothing is planned again.
    monkeypatch.setattr(compressing, "collegialize", lambda *_, **__: epochs.append("again"))
    again = compress(classifier, colour_images, tmp_path / "parts.keras", **options)
    assert not epochs  # The calibration was not repeated.
    assert again._replace(step_seconds=0) == found._replace(step_seconds=0)
    whole, parts = (weights_of(tmp_path / f"{name}.keras") for name in ("whole", "parts"))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_call_that_begins_anew_takes_nothing_from_a_stopped_one(
    colour_images, tmp_path, stop, monkeypatch
):
    model = saved(tmp_path / "model.keras", (8, 8, 3), (8, 8))
    options = {"design": "2x4d", "epochs": 2, "images": 20, "batch_size": 130}
    monkeypatch.setattr(compressing, "step_seconds", lambda *_: (0.0, 0.0))
    stop(model, colour_images, tmp_path / "new.keras", **options)
    (tmp_path / ".new.compress" / "progress.json").unlink()
    found = [
        compress(model, colour_images, tmp_path / f"{name}.keras", **options, seed=1)
        for name in ("new", "clean")
    ]
    assert found[0] == found[1]
    new, clean = (weights_of(tmp_path / f"{name}.keras") for name in ("new", "clean"))
    for one, other in zip(new, clean, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_layers_that_the_user_froze_are_timed_frozen(colour_images, tmp_path, monkeypatch):
    image = keras.Input((32, 32, 3))
    inner = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(3, 1), layers.Flatten()])
    hidden = layers.Dense(8, "relu")(layers.Dense(8, "relu")(inner(image)))
    model = keras.Model(image, layers.Dense(10)(hidden))
    inner.layers[0].trainable = False
    model.save(tmp_path / "model.keras")
    timed = []
    monkeypatch.setattr(
        compressing, "step_seconds", lambda models, _: timed.extend(models) or (0.0, 0.0)
    )
    options = {"design": "2x4d", "epochs": 1, "images": 10, "batch_size": 130}
    compress(tmp_path / "model.keras", colour_images, tmp_path / "smaller.keras", **options)
    for each in timed:
        assert [len(layer.trainable_variables) for layer in each.layers] == [0, 0, 2, 2, 2]


@pytest.mark.slow
def test_the_command_ends_in_a_table(classifier, colour_images, tmp_path, capsys):
    words = ["compress", str(classifier), "--data", str(colour_images), "--epochs", "1"]
    words += ["--save", str(tmp_path / "smaller.keras"), "--images", "50", "--target", "0.6"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for what in ("parameters", "FLOPs of an image", "test error, %", "same class, %", "compared"):
        assert what in text
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    smaller = keras.models.load_model(tmp_path / "smaller.keras")
    assert content["params"][1] == smaller.count_params()


@pytest.mark.slow
def test_a_resnet50_goes_through_all_of_it(colour_images, tmp_path):
    image = keras.Input((32, 32, 3))
    x = keras.applications.resnet50.preprocess_input(image)
    resnet = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
    path, save = tmp_path / "resnet50.keras", tmp_path / "smaller.keras"
    keras.Model(image, resnet(x)).save(path)
    options = {"design": "1x32d", "epochs": 1, "images": 20, "batch_size": 130}
    found = compress(path, colour_images, save, **options)
    assert found.params[1] < found.params[0] == 23_555_082
    assert keras.models.load_model(save).count_params() < resnet.count_params()


def test_the_model_itself_is_not_replaced(classifier, colour_images, capsys):
    with pytest.raises(ValueError, match=r"save: .*model.keras is the model that is read"):
        compress(classifier, colour_images, classifier)
    for command in (["compress", "--data=embedded"], ["collegialize"]):
        assert main([*command, str(classifier), f"--save={classifier}"]) == 2
        assert "is the model that is read; name another file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_compression_does_not_go_on_with_other_images(colour_images, tmp_path, stop):
    model = saved(tmp_path / "model.keras", (32, 32, 3), (8, 8))
    options = {"design": "2x4d", "epochs": 2, "images": 20, "batch_size": 130}
    stop(model, colour_images, tmp_path / "new.keras", **options)
    next((colour_images / "train/class-3").iterdir()).unlink()
    with pytest.raises(ValueError, match="begun with other images; restore them, or delete it"):
        compress(model, colour_images, tmp_path / "new.keras", **options)


@pytest.mark.slow
def test_dropout_follows_the_seed(colour_images, tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, "step_seconds", lambda *_: (0.0, 0.0))
    hidden = [layers.Dense(8, "relu"), layers.Dropout(0.5), layers.Dense(8, "relu")]
    row = [keras.Input((32, 32, 3)), layers.Flatten(), *hidden, layers.Dense(10, "softmax")]
    keras.Sequential(row).save(tmp_path / "model.keras")
    options = {"design": "2x4d", "epochs": 1, "images": 20, "batch_size": 50}
    found = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        keras.utils.set_random_seed(len(found))
        place = tmp_path / f"{name}.keras"
        compress(tmp_path / "model.keras", colour_images, place, seed=seed, **options)
        found.append(np.concatenate([each.ravel() for each in weights_of(place)]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert abs(found[0] - found[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "flip"}, "data.augment: got 'flip'; it must be a list"),
        ({"augment": ("mirror",)}, "data.augment: .* list of crop, flip"),
        ({"normalize": "foo"}, "data.normalize: got 'foo'; it must be one of channel"),
        ({"mode": "primal"}, "design: 'calibrated' compares networks smaller than the model"),
        ({"mode": "Dual", "target": 0.5}, "mode: got 'Dual'"),
        ({"target": float("nan")}, "target: got nan"),
        ({"seed": None}, "seed: got None"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compress(tmp_path / "nowhere.keras", tmp_path, tmp_path / "new.keras", **options)


def test_the_command_says_that_the_primal_needs_a_target(capsys):
    words = ["compress", "nowhere.keras", "--data=embedded", "--save=new.keras", "--mode=primal"]
    assert main(words) == 2
    assert "give mode='dual', or a target" in capsys.readouterr().err


def grey_idx(folder):
    """Write ten black images of 28x28 pixels, one of each class, to train and to test."""
    folder.mkdir()
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte", np.zeros((10, 28, 28), np.uint8))
        write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(10))
    return folder


def grey_files(folder):
    for name in [f"{split}/{number}" for split in ("train", "test") for number in range(10)]:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(folder / name / "0.png")
    return folder


@pytest.mark.parametrize("made", [grey_idx, grey_files])
@pytest.mark.parametrize("augment", [(), ("resized_crop",)])
def test_grey_images_of_another_size_are_refused(made, augment, tmp_path):
    model = saved(tmp_path / "model.keras", (32, 32, 1), (8, 8))
    message = r"data: its images are \(28, 28, 1\), and the model's \(32, 32, 1\); only files of"
    options = {"design": "2x4d", "augment": augment}
    with pytest.raises(ValueError, match=message):
        compress(model, made(tmp_path / "grey"), tmp_path / "new.keras", **options)


def test_images_of_another_size_are_not_normalised_in_another_way(colour_images, tmp_path):
    model = saved(tmp_path / "model.keras", (16, 16, 3), (8, 8))
    options = {"design": "2x4d", "normalize": "channel"}
    with pytest.raises(ValueError, match="normalize: got 'channel'; resized images"):
        compress(model, colour_images, tmp_path / "new.keras", **options)
    recipe = compressing._recipe(str(colour_images), "channel", ["flip", "resized_crop"], 50)
    batches, steps = compressing._pipeline(keras.models.load_model(model), recipe, 0)
    assert steps == 3
    (train, _), (test, _) = (next(iter(each)) for each in (batches.train(0), batches.test()))
    assert train.shape == test.shape == (50, 16, 16, 3)


def test_idx_files_are_read_once(tmp_path, monkeypatch):
    model = keras.models.load_model(saved(tmp_path / "model.keras", (28, 28, 1), (8, 8)))
    read, load_idx = [], datasets.load_idx
    monkeypatch.setattr(datasets, "load_idx", lambda path: read.append(path) or load_idx(path))
    recipe = compressing._recipe(str(grey_idx(tmp_path / "idx")), "none", (), 4)
    _, steps = compressing._pipeline(model, recipe, 0)
    assert (len(read), steps) == (1, 3)


class Batches:
    """Random test images."""

    def test(self):
        images = np.random.default_rng(0).standard_normal((70, 4, 4, 1), np.float32)
        return tf.data.Dataset.from_tensor_slices((images, np.zeros(70))).batch(3)


@pytest.mark.parametrize(
    ("last", "probabilities"),
    [
        ([layers.Dense(3)], False),
        ([layers.Dense(3, "relu")], False),
        ([layers.Dense(3, "softmax", dtype="float16")], True),
        ([layers.Dense(3, "softmax"), layers.Activation("linear")], True),
        ([layers.Dense(3, "softmax"), layers.Reshape((3,))], True),
        ([layers.Dense(3), layers.Softmax(), layers.Rescaling(5.0)], False),
    ],
)
def test_probabilities_are_told_from_logits_by_their_values(last, probabilities):
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), *last])
    assert compressing._gives_probabilities(model, Batches()) == probabilities


@pytest.mark.parametrize("steps", [["sigmoid"], ["sigmoid", "linear"]])
def test_a_sigmoid_is_refused_before_the_calibration(steps, colour_images, tmp_path, monkeypatch):
    hidden = [layers.Rescaling(1 / 255), *(layers.Dense(8, "relu") for _ in range(2))]
    end = [layers.Dense(10), *map(layers.Activation, steps)]
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Flatten(), *hidden, *end])
    model.save(tmp_path / "model.keras")
    monkeypatch.setattr(compressing, "collegialize", never)
    with pytest.raises(ValueError, match=r"model: its output .* has numbers from 0 to 1"):
        compress(tmp_path / "model.keras", colour_images, tmp_path / "new.keras", design="2x4d")


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [((32, 32, 1), 10, "3 channels, the model 1"), ((32, 32, 3), 7, "it has 10 classes")],
)
def test_a_model_of_other_images_is_refused(shape, classes, message, colour_images, tmp_path):
    steps = [layers.Flatten(), layers.Dense(32), layers.Dense(32), layers.Dense(classes)]
    keras.Sequential([keras.Input(shape), *steps]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=message):
        compress(tmp_path / "other.keras", colour_images, tmp_path / "new.keras", design="2x8d")


def test_a_frozen_model_is_refused_where_it_would_be_trained(classifier, tmp_path):
    model = keras.models.load_model(classifier)
    model.trainable = False
    model.save(classifier)
    with pytest.raises(ValueError, match=r"model: no layer of 'sequential.*' is trainable"):
        compress(classifier, "embedded", tmp_path / "new.keras")
