"""Weights of the Hugging Face Hub, from repositories in its cache, as they are met offline."""

import builtins
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from ce_keras import zoo
from ce_keras.geometry import RESNEXTS, Design
from ce_keras.zoo.hub import find_resnext_weights

constants = pytest.importorskip("huggingface_hub.constants")

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
CARD = {
    "input_size": [3, 48, 48],
    "test_input_size": [3, 64, 64],
    "crop_pct": 0.875,
    "test_crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.5],
}
SMALL = {"architecture": "resnext50_2x4d", "num_classes": 5, "global_pool": "avg"}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A function that puts a commit of a repository into the Hub's cache; nothing is online."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    def put(state=None, commit=OLD, card=CARD, **config):
        folder = tmp_path / "hub" / "models--timm--small"
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        content = {**SMALL, "pretrained_cfg": card, **config}
        (snapshot / "config.json").write_text(json.dumps(content))
        if state is not None:
            save_file(state, snapshot / "model.safetensors")
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)

    return put


def build(weights="hf://timm/small", cardinality=2, width=4, **options):
    options = {"classes": 5, "input_shape": (64, 64, 3), "classifier_activation": None} | options
    return zoo.resnext50(cardinality=cardinality, width=width, weights=weights, **options)


def test_outputs_are_pytorchs(store, rng):
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
    from torch_resnet import random_resnet

    network = random_resnet((3, 4, 6, 3), 2, 4, 5)
    store({key: value.numpy() for key, value in network.state_dict().items()})
    x = rng.normal(size=(8, 64, 64, 3)).astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    found = build()(x).numpy()
    assert abs(found - expected).max() < 1e-4 * abs(expected).max()
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    # Random weights give all images much the same outputs: what is their own must agree too.
    own, wanted = found - found.mean(0), expected - expected.mean(0)
    assert abs(own - wanted).max() < 1e-4 * abs(wanted).max()
    np.testing.assert_array_equal(own.argmax(1), wanted.argmax(1))


def test_revisions_and_what_is_kept(store, tmp_path, monkeypatch):
    state = zoo.to_torch(zoo.create("resnext50_2x4d", classes=5, seed=0))
    state["bn1.num_batches_tracked"] = np.array(3)
    store(state)
    store({key: np.asarray(value + 1) for key, value in state.items()}, NEW)
    newest, old = build(), build(f"hf://timm/small@{OLD}", include_top=False, classes=7)
    np.testing.assert_array_equal(newest.get_weights()[0], old.get_weights()[0] + 1)
    np.testing.assert_array_equal(zoo.to_torch(newest)["fc.weight"], state["fc.weight"] + 1)
    kept = tmp_path / "keras" / "ce_keras"
    assert {path.name for path in kept.iterdir()} == {
        f"timm--small@{commit}.safetensors" for commit in (OLD, NEW)
    }
    with safe_open(kept / f"timm--small@{NEW}.safetensors", "np") as file:
        assert file.metadata()["source"] == f"hf://timm/small@{NEW}"
    # A commit that was converted needs neither the Hub nor its library.
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    again = find_resnext_weights(f"hf://timm/small@{OLD}", "", RESNEXTS["resnext50"], Design(2, 4))
    assert again == kept / f"timm--small@{OLD}.safetensors"
    assert zoo.preprocessing(f"hf://timm/small@{OLD}").size == 48
    with pytest.raises(ImportError, match=r"weights: hf://timm/small needs .*'ce-keras\[hub\]'"):
        build()


def test_preprocessing_is_that_of_the_card(store, rng):
    store()
    images = [rng.integers(256, size=(80, 120, 3), dtype="uint8"), np.zeros((70, 50, 3), "uint8")]
    preprocess = zoo.preprocessing("hf://timm/small")
    assert preprocess[:3] == (48, 54, "bicubic")
    # 54 x 81 pixels of which columns 16 to 64 are left: (81 - 48) / 2 is rounded to the even 16.
    resized = np.asarray(Image.fromarray(images[0]).resize((81, 54), Image.Resampling.BICUBIC))
    expected = (resized[3:51, 16:64] / 255 - CARD["mean"]) / CARD["std"]
    found = preprocess(images)
    assert found.shape == (2, 48, 48, 3)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    first = preprocess([Image.fromarray(images[0])], "channels_first")
    np.testing.assert_array_equal(first[0], found[0].transpose(2, 0, 1))
    assert zoo.preprocessing("hf://timm/small", test_size=True)[:2] == (64, 64)
    normalised = zoo.preprocess_input(resized[None].astype("float32"), weights="hf://timm/small")
    np.testing.assert_allclose(normalised[0, 3:51, 16:64], expected, atol=1e-5)
    with pytest.raises(ValueError, match="images: got float64 of shape"):
        preprocess([np.zeros((4, 4, 3))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "seresnext50_32x4d"}, "'seresnext50_32x4d', which has attention"),
        ({"architecture": "resnetaa50"}, "filters before it subsamples"),
        ({"architecture": "resnet50_gn"}, "group normalisation"),
        ({"architecture": "resnext50d_32x4d"}, "a deep stem"),
        ({"architecture": "resnet34"}, "two 3x3 convolutions"),
        ({"architecture": "vit_base"}, "the zoo lacks; those that fit are resnet50, 101"),
        ({"architecture": "resnext50_32x4d"}, "build it by resnext50.cardinality=32, width=4"),
        ({"architecture": "resnext101_2x4d"}, "network is 50 layers of 2x4d; build it by resnext1"),
        ({"architecture": "wide_resnet50_2"}, "by resnext50.cardinality=1, width=128, weights="),
        ({"architecture": "resnet50"}, "build it by resnet50.weights="),
        ({"global_pool": "max"}, "was built with {'global_pool': 'max'}"),
        ({"model_args": {"aa_layer": "blur"}}, "was built with {'aa_layer': 'blur'}"),
        ({"pretrained_cfg": None}, "config.json is not one of timm's"),
        ({"model_args": {"num_classes": 5}}, "model.safetensors cannot be had"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_fetched(change, message, store):
    store(**change)
    with pytest.raises(ValueError, match=rf"weights: hf://timm/small.*{message}"):
        build()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://timm", "must be hf://owner/name"),
        ("hf:timm/small", "must be hf://owner/name"),
        ("hf://timm/small@", "must be hf://owner/name"),
        ("hf://timm/small@v2", "config.json cannot be had"),
        ("hf://timm/other", "config.json cannot be had"),
    ],
)
def test_addresses_that_lead_nowhere(address, message, store):
    store()
    for call in (build, zoo.preprocessing):
        with pytest.raises(ValueError, match=rf"weights: .*{message}"):
            call(address)
    with pytest.raises(ValueError, match="wide_resnet10_1 has none on the Hugging Face Hub"):
        zoo.wide_resnet(depth=10, widening=1, weights=address)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_mode": "squash"},
        {"input_size": [3, 48, 64]},
        {"input_size": None},
        {"interpolation": "random"},
        {"mean": [0.5]},
        {"std": [0.5, 0.5, 0]},
        {"crop_pct": "most"},
    ],
)
def test_preprocessing_that_is_not_known(change, store):
    store(card={**CARD, **change})
    with pytest.raises(ValueError, match="weights: hf://timm/small: its preprocessing is not kno"):
        zoo.preprocessing("hf://timm/small")
