"""Weights to and from PyTorch, against a PyTorch network; and from keras.applications."""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from ce_keras import zoo


@pytest.mark.parametrize(
    ("name", "blocks", "design"),
    [
        pytest.param("resnet50", (3, 4, 6, 3), (1, 64), marks=pytest.mark.slow),
        ("resnext50_32x4d", (3, 4, 6, 3), (32, 4)),
    ],
)
def test_pytorch_and_back(name, blocks, design, rng, tmp_path):
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
    from torch_resnet import random_resnet

    network = random_resnet(blocks, *design, classes=20)
    model = zoo.create(name, classes=20, classifier_activation=None, input_shape=(64, 64, 3))
    x = rng.normal(size=(8, 64, 64, 3)).astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    for source in (network.state_dict(), tmp_path / "a.safetensors", tmp_path / "a.pth"):
        model.set_weights([np.zeros(w.shape) for w in model.get_weights()])
        zoo.from_torch(model, source)
        found = model(x).numpy()
        assert abs(found - expected).max() < 1e-4 * abs(expected).max()
        np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    back = zoo.to_torch(model)
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[key], value)


def test_names_and_shapes_are_pytorchs():
    state = zoo.to_torch(zoo.create("resnext50_32x4d"))
    # Of torchvision's resnext50_32x4d, apart from num_batches_tracked.
    assert len(state) == 267
    assert {key: state[key].shape for key in list(state)[:2]} == {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.weight": (64,),
    }
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["layer2.0.conv2.weight"].shape == (256, 8, 3, 3)
    assert state["layer4.2.bn3.running_var"].shape == (2048,)
    assert state["fc.weight"].shape == (1000, 2048)


def test_a_state_goes_round(rng):
    model = zoo.create("resnext50_2x2d", classes=5, seed=0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1, variable.shape))
    state = zoo.to_torch(model) | {"bn1.num_batches_tracked": np.array(3)}
    other = zoo.create("resnext50_2x2d", classes=5, seed=1)
    zoo.from_torch(other, state)
    for one, again in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, again)
    features = zoo.create("resnext50_2x2d", features_only=True)
    zoo.from_torch(features, state, partial=True)
    np.testing.assert_array_equal(features.get_weights()[0], model.get_weights()[0])
    with pytest.raises(ValueError, match=r"state: has more: fc.bias, fc.weight; is it of"):
        zoo.from_torch(features, state)
    with pytest.raises(ValueError, match=r"state: conv1.0.weight is of a variant"):
        zoo.from_torch(other, state | {"conv1.0.weight": np.zeros(1)})
    state.pop("layer3.1.bn2.bias")
    with pytest.raises(ValueError, match=r"state: lacks conv4_block2_2_bn/beta"):
        zoo.from_torch(other, state)
    with pytest.raises(ValueError, match="has no counterpart in PyTorch's ResNets"):
        zoo.to_torch(zoo.wide_resnet(depth=10, widening=1))


def test_files_that_are_not_there_or_not_known(tmp_path):
    model = zoo.create("resnext11_2x2d")
    with pytest.raises(ValueError, match="state: there is no file"):
        zoo.from_torch(model, tmp_path / "a.pth")
    (tmp_path / "a.pkl").touch()
    with pytest.raises(ValueError, match=r"a\.pkl is empty"):
        zoo.from_torch(model, tmp_path / "a.pkl")


def test_resnet50_of_keras_applications_is_another_function():
    source = keras.applications.ResNet50(weights=None)
    with pytest.raises(ValueError, match=r"conv3_block1_1_conv has strides \(2, 2\), ours"):
        zoo.from_applications(zoo.resnet50(), source)


def test_a_resnet_of_keras_applications_that_fits(rng):
    from keras.src.applications import resnet

    from ce_keras.geometry import Design, ResNeXt

    # One stage has no strides inside.
    source = resnet.ResNet(
        lambda x: resnet.stack_residual_blocks_v1(x, 64, 2, stride1=1, name="conv2"),
        preact=False,
        use_bias=True,
        weights=None,
        input_shape=(64, 64, 3),
        classes=7,
        name="one_stage",
    )
    for variable in source.weights:
        variable.assign(rng.uniform(0.2, 1, variable.shape) * 0.3)
    model = zoo.build_resnext(ResNeXt((2,), 64), Design(1, 64), classes=7, input_shape=(64, 64, 3))
    zoo.from_applications(model, source)
    x = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(model(x), source(x), rtol=1e-3, atol=1e-6)
    shorter = zoo.build_resnext(ResNeXt((1,), 64), Design(1, 64), classes=7)
    with pytest.raises(ValueError, match="source: one_stage has conv2_block2_1_conv, which"):
        zoo.from_applications(shorter, source)


def test_another_padding_is_another_function():
    from ce_keras.geometry import Design, ResNeXt

    def build():
        return zoo.build_resnext(ResNeXt((1, 1), 8), Design(1, 8), classes=7)

    zoo.from_applications(build(), source := build())
    source.get_layer("conv3_block1_2_conv").padding = "same"
    with pytest.raises(ValueError, match="conv3_block1_2_conv has padding same, ours valid"):
        zoo.from_applications(build(), source)


# Files of others ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnext():
    return zoo.create("resnext50_2x2d", classes=5, seed=0)


@pytest.fixture(scope="module")
def state(resnext):
    return zoo.to_torch(resnext)


def zeroed(model):
    model.set_weights([np.zeros(weight.shape) for weight in model.get_weights()])


WRAPS = [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    lambda s: {"model": s, "optimizer": {"state": {}, "lr": [0.1]}},
    lambda s: {"state_dict_ema": {f"module.{key}": value for key, value in s.items()}},
    lambda s: {f"model._orig_mod.module.{key}": value for key, value in s.items()},
    lambda s: {"weights": s, "optimizer": {"state": {0: {"step": s["fc.bias"]}}}},
    lambda s: {"model": {"state_dict": s, "name": "resnext"}},
    lambda s: {"net": s, "acc": s["fc.bias"].mean()},
    lambda s: {
        "n_averaged": s["fc.bias"].sum(),
        **{f"module.{key}": value for key, value in s.items()},
    },
]
SUFFIXES = [".pth", ".pth.tar", ".bin", ".ckpt", ".pt"]


@pytest.mark.parametrize(
    ("wrap", "suffix"),
    [
        pytest.param(
            wrap, suffix, marks=() if suffix == ".pth" or wrap is WRAPS[1] else pytest.mark.slow
        )
        for wrap in WRAPS
        for suffix in SUFFIXES
    ],
)
def test_whatever_a_checkpoint_is_wrapped_in(wrap, suffix, resnext, state, tmp_path):
    torch = pytest.importorskip("torch")
    before = resnext.get_weights()
    path = tmp_path / f"model{suffix}"
    torch.save(wrap({key: torch.from_numpy(value) for key, value in state.items()}), path)
    zeroed(resnext)
    zoo.from_torch(resnext, path)
    for one, other in zip(resnext.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_prefix_is_taken_off_whatever_the_file(resnext, state, tmp_path):
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "a.safetensors")
    zeroed(resnext)
    zoo.from_torch(resnext, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(zoo.to_torch(resnext)["fc.bias"], state["fc.bias"])
    # A Keras model's own names are not touched.
    own = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="model.one")])
    zoo.save_weights(own, tmp_path / "own.safetensors")
    zoo.load_weights(own, tmp_path / "own.safetensors")


def test_weights_of_which_it_is_not_clear_which_are_meant(resnext, state):
    with pytest.raises(ValueError, match=r"weights under each of \['student', 'teacher'\]"):
        zoo.from_torch(resnext, {"student": state, "teacher": state})


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64"])
def test_tensors_that_are_no_real_numbers_are_refused(dtype, resnext, state):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    tensors["conv1.weight"] = tensors["conv1.weight"].to(getattr(torch, dtype))
    with pytest.raises(ValueError, match=rf"state: conv1\.weight has .* torch\.{dtype}; weights"):
        zoo.from_torch(resnext, tensors)
    tensors["conv1.weight"] = tensors["conv1.weight"].numpy()
    with pytest.raises(ValueError, match=rf"of type {dtype}; weights are real numbers"):
        zoo.from_torch(resnext, tensors)


def test_a_file_of_8_bit_floats_is_named(resnext, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path = tmp_path / "small.safetensors"
    save_file({"fc.bias": torch.zeros(5).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ValueError, match=r"small\.safetensors cannot be read: .*float8_e4m3fn"):
        zoo.from_torch(resnext, path)


DAMAGED = {
    "empty": (b"", "is empty"),
    "page": (b"<!DOCTYPE html><html>Sign in</html>", "is a page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "junk": (b"\x00\x01" * 50, "neither"),
    "cut": (b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": [', "cannot be read"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_are_no_weights_are_named(name, suffix, resnext, tmp_path):
    content, message = DAMAGED[name]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    before = resnext.get_weights()
    readers = [zoo.from_torch]
    if suffix == ".safetensors":
        readers.append(zoo.load_weights)
    for read in readers:
        with pytest.raises(ValueError, match=message) as error:
            read(resnext, path)
        assert str(path) in str(error.value)
    for one, other in zip(resnext.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_whole_module_is_refused_with_what_to_do(resnext, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "whole.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"whole\.pth .*save its state_dict"):
        zoo.from_torch(resnext, path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"whole\.pth has no weights, but \['epoch'\]"):
        zoo.from_torch(resnext, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"whole\.pth"):
        zoo.from_torch(resnext, path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a: np.full_like(a, np.nan), "infinite or NaN"),
        (lambda a: np.where(a > 0, np.inf, a), "infinite or NaN"),
        (lambda a: a.astype(int), "of type int64; weights are real numbers"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(wrong, message, resnext, state, tmp_path):
    before = resnext.get_weights()
    damaged = {**state, "layer1.0.conv2.weight": wrong(state["layer1.0.conv2.weight"])}
    with pytest.raises(ValueError, match=message):
        zoo.from_torch(resnext, damaged)
    own = {variable.path: np.asarray(variable) for variable in resnext.weights}
    name = next(name for name in own if name.endswith("kernel"))
    save_file({**own, name: wrong(own[name])}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        zoo.load_weights(resnext, tmp_path / "a.safetensors")
    for one, other in zip(resnext.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:100], lambda _: b"x"])
def test_a_damaged_h5_file_changes_nothing(damage, resnext, tmp_path):
    path = tmp_path / "a.weights.h5"
    resnext.save_weights(path)
    path.write_bytes(damage(path.read_bytes()))
    before = resnext.get_weights()
    with pytest.raises(ValueError, match=r"a\.weights\.h5"):
        zoo.load_weights(resnext, path)
    for one, other in zip(resnext.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_imagenet_weights_point_to_the_converters():
    with pytest.raises(ValueError, match=r"from_torch.*from_applications"):
        zoo.resnext50(weights="imagenet")
