"""Several devices, and several machines, do what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fresh
import keras
import numpy as np
import pytest
import tensorflow as tf

from ce_keras.training.datasets import load_dataset
from ce_keras.training.input_pipeline import PADDING_LABEL, InputPipeline, Shard
from ce_keras.training.recipe import read_recipe
from ce_keras.training.strategy import find_strategy
from ce_keras.training.train_step import count_correct
from ce_keras.training.trainer import Trainer

SMALL = {
    "data.limit": "70",
    "data.test_limit": "100",  # The last batch has one image.
    "model.cardinality": "2",
    "model.width": "3",
    "schedule.batch_size": "33",  # Of 16 and 17 rows, twice; then 4 images are left.
    "schedule.epochs": "1",
    "schedule.divide_at": "[]",
    "schedule.warmup": "0",
    "optimizer.learning_rate": "0.01",
    "optimizer.clip": "0.5",  # The norm must be that of the whole gradient.
}


def small(**changes):
    return read_recipe("fashion_mnist", {**SMALL, **changes})


def ask(recipe, folder, devices=(), backend="tensorflow", workers=(), index=0, **changes):
    asked = {"recipe": recipe.to_dict(), "devices": list(devices), "save_every": None}
    asked |= {"kill_at": None, **changes}
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if workers:
        cluster = {"cluster": {"worker": list(workers)}}
        task = {"task": {"type": "worker", "index": index}}
        environment["TF_CONFIG"] = json.dumps(cluster | task)
    if backend == "jax":
        count = f"--xla_force_host_platform_device_count={len(devices) or 1}"
        environment["XLA_FLAGS"] = f"{environment['XLA_FLAGS']} {count}"
    command = [Path(__file__).with_name("train_in_process.py"), folder, json.dumps(asked)]
    if backend == "tensorflow":
        return fresh.Process(command, environment)
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(folder, *processes, who="chief"):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return np.load(folder / f"losses-{who}.npz")


def assert_same(found, expected):
    """The same steps: sums over the batch are in another order, which float32 rounds otherwise."""
    np.testing.assert_array_equal(found["counts"], expected["counts"])
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    for name in expected.files:
        if name.startswith("weight_"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one device does."""
    folder = tmp_path_factory.mktemp("one")
    return done(folder, ask(small(), folder))


@pytest.mark.slow  # Processes that trace a ResNeXt: test_command has a smaller network.
def test_two_devices_are_as_one(one, tmp_path):
    found = done(tmp_path, ask(small(), tmp_path, ["cpu:0", "cpu:1"]))
    assert len(found["losses"]) == 3
    assert_same(found, one)
    model = keras.models.load_model(tmp_path / "model.keras")
    assert not model.get_layer("conv1_bn").synchronized, "what is saved is a network of its own"


@pytest.mark.slow
def test_two_devices_are_as_one_on_jax(tmp_path):
    pytest.importorskip("jax")
    # A batch that four devices share evenly, and one that they cannot.
    recipe = small(**{"data.limit": "30", "schedule.batch_size": "20"})
    folders = [tmp_path / "one", tmp_path / "four"]
    processes = []
    for folder, count in zip(folders, (1, 4), strict=True):
        folder.mkdir()
        processes.append(ask(recipe, folder, [f"cpu:{i}" for i in range(count)], "jax"))
    assert_same(*(done(*each) for each in zip(folders, processes, strict=True)))


def _free():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def _workers(recipe, folder, **changes):
    addresses = [_free(), _free()]
    # A worker has a folder of its own, as on a machine of its own.
    folders = [folder / "chief", folder / "worker"]
    for each in folders:
        each.mkdir(exist_ok=True)
    return [
        ask(recipe, each, workers=addresses, index=index, **changes)
        for index, each in enumerate(folders)
    ]


@pytest.mark.slow
def test_two_machines_are_as_one_and_go_on_where_they_were_killed(one, tmp_path):
    processes = _workers(small(), tmp_path, save_every=1, kill_at=2)
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 9
    assert not list((tmp_path / "worker").iterdir()), "only the chief writes"
    done(tmp_path / "chief", *(_workers(small(), tmp_path, save_every=1)))
    chief, worker = (np.load(tmp_path / who / f"losses-{who}.npz") for who in ("chief", "worker"))
    assert len(chief["losses"]) == 2, "the step before the kill was saved, and not done again"
    np.testing.assert_array_equal(chief["losses"], worker["losses"])
    np.testing.assert_allclose(chief["losses"], one["losses"][1:], rtol=1e-5)
    np.testing.assert_array_equal(chief["history"], worker["history"])
    for name in one.files:
        if name.startswith("weight_"):
            np.testing.assert_allclose(chief[name], one[name], rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(chief[name], worker[name])


def test_no_replica_of_a_shard_is_left_without_a_row():
    recipe = small(**{"data.limit": "20", "schedule.batch_size": "9"})  # 9, 9, and 2 images.
    source = load_dataset(recipe.data)
    for of, size in ((6, 2), (8, 4), (4, 1)):
        shards = [Shard(first, first + size, of) for first in range(0, of, size)]
        labels = []
        for shard in shards:
            pieces = [
                (len(x), y.numpy()) for x, y in InputPipeline(recipe, source, 1, shard).train(0)
            ]
            assert len(pieces) == 3 * size
            assert all(count == len(y) > 0 for count, y in pieces)
            labels += [y for _, y in pieces[-size:]]
        last = np.concatenate(labels)
        whole = [y.numpy() for _, y in InputPipeline(recipe, source, 1).train(0)][-1]
        np.testing.assert_array_equal(last[last != PADDING_LABEL], whole)


@pytest.mark.parametrize("of", [2, 3])
def test_shards_are_the_rows_of_the_whole_batch(of):
    recipe = small(**{"data.limit": "40", "schedule.batch_size": "19"})  # 19, 19, and 2 images.
    source = load_dataset(recipe.data)
    whole = [(x.numpy(), y.numpy()) for x, y in InputPipeline(recipe, source, 1).train(epoch=1)]
    for shards in ([Shard(k, k + 1, of) for k in range(of)], [Shard(0, of, of)]):
        feeds = [InputPipeline(recipe, source, 1, shard).train(1) for shard in shards]
        pieces = [[(x.numpy(), y.numpy()) for x, y in feed] for feed in feeds]
        if len(shards) == 1:
            pieces = [pieces[0][k::of] for k in range(of)]
        for batch, (images, labels) in enumerate(whole):
            own = [piece[batch] for piece in pieces]
            found = np.concatenate([y for _, y in own])
            seen = found != PADDING_LABEL
            assert (seen.sum() < len(seen)) == (len(labels) < of)
            np.testing.assert_array_equal(found[seen], labels)
            np.testing.assert_array_equal(np.concatenate([x for x, _ in own])[seen], images)


def test_correct_images_are_those_that_tensorflow_counts(rng):
    logits = rng.integers(0, 6, (400, 10)).astype("float32")  # With ties.
    logits[7, 3] = np.nan
    labels = rng.integers(0, 10, 400).astype("int32")
    labels[7] = 3
    expected = [
        tf.reduce_sum(tf.cast(tf.math.in_top_k(labels, logits, k), tf.int32)) for k in (1, 5)
    ]
    assert count_correct(logits, labels).numpy().tolist() == [400, *map(int, expected)]
    labels[:100] = PADDING_LABEL
    assert count_correct(logits, labels).numpy()[0] == 300


def test_devices_that_are_not_there():
    with pytest.raises(ValueError, match=r"devices: got \['gpu:7'\]; there are cpu:0"):
        find_strategy(["gpu:7"])
    assert find_strategy() is find_strategy()


def test_batches_too_small_to_be_shared(tmp_path):
    recipe = small(**{"schedule.batch_size": "23"})  # The last has one image.
    two = SimpleNamespace(replicas=2)
    with pytest.raises(ValueError, match="70 images in batches of 23 leave one of 1 for 2 devices"):
        Trainer(recipe, load_dataset(recipe.data), tmp_path, strategy=two)
    assert not list(tmp_path.iterdir())
