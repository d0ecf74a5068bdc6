"""Cards are up to date, and what they say of trained weights is so."""

import hashlib
import importlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from ce_keras import geometry, zoo
from ce_keras.training import load_fashion_mnist
from ce_keras.zoo import weights as rooms

ROOT = Path(__file__).parents[2]


def test_cards_are_what_is_known_now(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    importlib.import_module("zoo_cards").write(tmp_path)
    written = {path.name: path for path in tmp_path.iterdir()}
    kept = {path.name: path for path in (ROOT / "zoo").iterdir() if path.name != "measured.json"}
    assert written.keys() == kept.keys()
    for name, path in written.items():
        if path.suffix in (".md", ".csv"):
            assert path.read_text() == kept[name].read_text(), f"stale: {name}"
    assert {f"{entry.name}.md" for entry in zoo.entries()} <= kept.keys()


def test_what_was_counted_for_the_cards_is_what_is_built():
    counted = json.loads((ROOT / "zoo/measured.json").read_text())["models"]
    for entry in zoo.entries():
        if entry.family.startswith("resn"):
            network = geometry.resnext(entry.family.replace("resnet", "resnext"))
            assert counted[entry.name]["parameters"] == network.params(*entry.design)
            assert counted[entry.name]["flops"] == network.flops(*entry.design)


def test_activations_alive_at_most_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    peak_activations = importlib.import_module("zoo_cards").peak_activations
    x = keras.Input((4,))
    wide = keras.layers.Dense(8)(x)
    narrow = keras.layers.Dense(4)(wide)
    chain = keras.Model(x, keras.layers.Dense(2)(narrow))
    assert peak_activations(chain) == 4 * (4 + 8), "the first layer's input and output"
    skip = keras.Model(x, keras.layers.Add()([x, narrow]))
    assert peak_activations(skip) == 4 * (4 + 8 + 4), "the skip holds the input"


@pytest.mark.parametrize("name", ["resnext11_7x7d", "fully_connected_3x63d"])
def test_trained_weights_have_the_error_that_is_said(name):
    """On the part of the test images that is here, within what a part can differ by."""
    entry = zoo.published_weights()[f"{name}/fashion_mnist"]
    _, test = load_fashion_mnist()
    model = zoo.create(name, weights="fashion_mnist")
    x = zoo.preprocess_input(test.images.astype("float32"), weights=f"{name}/fashion_mnist")
    outputs = model.predict(x, batch_size=500, verbose=0)
    error = 100 * (outputs.argmax(1) != test.labels).mean()
    spread = np.sqrt(entry["error"] * (100 - entry["error"]) / len(test.labels))
    assert abs(error - entry["error"]) < 4 * spread  # Once in 16,000 samples.
    ((best, *_), *_) = zoo.decode_predictions(outputs[:1], weights=f"{name}/fashion_mnist")
    assert best[1] == entry["classes"][outputs[0].argmax()]


def test_trained_weights_are_the_files_that_were_published(monkeypatch, tmp_path):
    for key, entry in zoo.published_weights().items():
        found = hashlib.sha256((rooms.FOLDER / entry["file"]).read_bytes()).hexdigest()
        assert found == entry["sha256"], key
    index = json.loads((rooms.FOLDER / "index.json").read_text())
    entry = index["resnext11_7x7d/fashion_mnist"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / entry["file"]).write_bytes(b"something else")
    monkeypatch.setattr(rooms, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="but was published with"):
        zoo.create("resnext11_7x7d", weights="fashion_mnist")


def test_weights_that_are_elsewhere_are_fetched_and_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    index = json.loads((rooms.FOLDER / "index.json").read_text())
    entry = index["fully_connected_3x63d/fashion_mnist"]
    url = (rooms.FOLDER / entry["file"]).as_uri()
    index["fully_connected_3x63d/elsewhere"] = {**entry, "url": url, "file": "ours.safetensors"}
    index["fully_connected_3x63d/wrong"] = {**entry, "url": url, "sha256": "0" * 64}
    (tmp_path / "index.json").write_text(json.dumps(index))
    here = zoo.create("fully_connected_3x63d", weights="fashion_mnist")
    monkeypatch.setattr(rooms, "FOLDER", tmp_path)
    fetched = zoo.create("fully_connected_3x63d", weights="elsewhere")
    np.testing.assert_array_equal(fetched.get_weights()[0], here.get_weights()[0])
    with pytest.raises(ValueError, match="hash"):
        zoo.create("fully_connected_3x63d", weights="wrong")
