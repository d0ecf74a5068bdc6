"""Trained classifiers made smaller, from a file to a file."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.cli import main
from ce_keras.training import compressing
from ce_keras.training.compressing import compress


@pytest.fixture
def classifier(tmp_path):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(16, "relu") for _ in range(2)]
    steps = [layers.Rescaling(1 / 255), layers.Flatten(), *hidden, layers.Dense(10, "softmax")]
    model = keras.Sequential([keras.Input((32, 32, 3)), *steps])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.slow
def test_a_stopped_compression_goes_on_to_the_same_end(
    classifier, colour_images, tmp_path, monkeypatch
):
    options = {"design": "2x8d", "epochs": 2, "images": 60, "batch_size": 50}
    found = compress(classifier, colour_images, tmp_path / "whole.keras", **options)
    assert found.params[1] < found.params[0]
    assert 0 <= found.agreement <= 100
    fit, epochs = keras.distillation.Distiller.fit, []

    def stopped(self, *arguments, epochs=0, **named):
        if epochs == 2:
            raise KeyboardInterrupt
        return fit(self, *arguments, epochs=epochs, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keras.distillation.Distiller, "fit", stopped)
        compress(classifier, colour_images, tmp_path / "parts.keras", **options)
    assert not (tmp_path / "parts.keras").exists()
    with pytest.raises(ValueError, match="was begun with other arguments"):
        compress(classifier, colour_images, tmp_path / "parts.keras", **options, seed=1)
    monkeypatch.setattr(compressing, "collegialize", lambda *_, **__: epochs.append("again"))
    again = compress(classifier, colour_images, tmp_path / "parts.keras", **options)
    assert not epochs  # The calibration was not repeated.
    assert again._replace(step_seconds=0) == found._replace(step_seconds=0)
    whole, parts = (keras.models.load_model(tmp_path / f"{n}.keras") for n in ("whole", "parts"))
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.glob(".*"))


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


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [((32, 32, 1), 10, "3 channels, the model 1"), ((32, 32, 3), 7, "it has 10 classes")],
)
def test_a_model_of_other_images_is_refused(shape, classes, message, colour_images, tmp_path):
    steps = [layers.Flatten(), layers.Dense(32), layers.Dense(32), layers.Dense(classes)]
    keras.Sequential([keras.Input(shape), *steps]).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=message):
        compress(tmp_path / "other.keras", colour_images, tmp_path / "new.keras", design="2x8d")
