"""Runs: they learn, they go on where they were killed, and they say what is wrong."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import fresh
import keras
import numpy as np
import pytest
import tensorflow as tf

from ce_keras import files
from ce_keras.cli import main
from ce_keras.geometry import resnext
from ce_keras.training import evaluate, export, plan, records, train
from ce_keras.training.building import build_loss
from ce_keras.training.checkpoints import Checkpoints
from ce_keras.training.datasets import KNOWN, ArrayDataset, load_dataset
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.interruption import Interrupted, Preempted
from ce_keras.training.recipe import read_recipe
from ce_keras.training.trainer import DivergedError, Trainer

SMALL = {
    "data.limit": "100",
    "data.test_limit": "200",
    "model.name": "fully_connected",  # It is traced in half the time of a ResNeXt.
    "model.depth": "2",
    "model.cardinality": "2",
    "model.width": "3",
    "schedule.batch_size": "32",
    "schedule.epochs": "2",
    "schedule.divide_at": "[1]",
    "schedule.warmup": "0",
}

RESNEXT = {"model.name": "resnext11"}


def small(**changes):
    return read_recipe("fashion_mnist", {**SMALL, **changes})


@pytest.fixture(scope="module")
def source():
    return load_dataset(small().data)


def weights(folder):
    return keras.models.load_model(folder / "model.keras").get_weights()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, source):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, Trainer(small(), source, folder, seed=3).run()


def test_a_run_leaves_what_it_did(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["recipe"]["schedule"]["batch_size"] == 32
    assert results["design"] == "fully_connected_2x3d"
    assert len(results["history"]) == 2
    assert results["averaged_over_epochs"] == 1
    assert results["error"] == results["history"][-1]["error"]
    assert [row["rate"] for row in results["history"]] == pytest.approx([0.1, 0.01])
    lines = (folder / "history.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,rate,error,top5_error"
    assert len(lines) == 3
    assert (folder / "curves.png").stat().st_size > 5000
    assert list((folder / "tensorboard").glob("events.*"))
    assert results["versions"]["keras"] == keras.__version__
    git = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    assert (results["revision"] or "") == head
    errors = evaluate(folder)
    assert errors["error"] == results["history"][-1]["error"]
    assert 0 <= errors["top5_error"] <= errors["error"]


def test_the_same_seed_ends_with_the_same_weights(finished, source, tmp_path):
    Trainer(small(), source, tmp_path / "again", seed=3).run()
    for one, other in zip(weights(finished[0]), weights(tmp_path / "again"), strict=True):
        np.testing.assert_array_equal(one, other)


SCRIPT = """
import os, signal, sys
from ce_keras.training.trainer import Trainer
from ce_keras.training.recipe import recipe_of
from ce_keras.training.datasets import load_dataset
import json
recipe = recipe_of(json.loads(sys.argv[2]))
trainer = Trainer(recipe, load_dataset(recipe.data), sys.argv[1], 3, save_every=2)
check, seen = trainer._check, []
def counted(*arguments):
    check(*arguments)
    seen.append(1)
    if len(seen) == int(sys.argv[3]):
        os.kill(os.getpid(), getattr(signal, sys.argv[4]))
trainer._check = counted
trainer.run()
"""


@pytest.fixture(scope="module")
def finished_resnext(tmp_path_factory, source):
    """The same with a network that keeps statistics of its batches."""
    folder = tmp_path_factory.mktemp("finished_resnext")
    return folder, Trainer(small(**RESNEXT), source, folder, seed=3).run()


@pytest.mark.parametrize(
    ("which", "step", "code", "run"),
    [
        ("SIGKILL", 3, -signal.SIGKILL, "finished"),
        ("SIGKILL", 3, -signal.SIGKILL, "finished_resnext"),
        ("SIGTERM", 5, 75, "finished"),
        ("SIGINT", 5, 1, "finished"),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(which, step, code, run, source, tmp_path, request):
    finished = request.getfixturevalue(run)
    recipe = small(**(RESNEXT if run == "finished_resnext" else {}))
    command = ["-c", SCRIPT, tmp_path, json.dumps(recipe.to_dict()), step, which]
    ended = fresh.run(command, check=False)
    assert ended.returncode == code, ended.stderr
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    # After SIGKILL, the last of every second step; after SIGTERM, the next one.
    assert files[-1] == f"step-{2 if which == 'SIGKILL' else 6:09d}.npz"
    assert not (tmp_path / "results.json").exists()
    results = Trainer(recipe, source, tmp_path, seed=3).run()
    for one, other in zip(weights(finished[0]), weights(tmp_path), strict=True):
        np.testing.assert_array_equal(one, other)
    assert results["history"] == finished[1]["history"]


# There are seven batches in each epoch's test.
@pytest.mark.parametrize(("which", "batch"), [(signal.SIGINT, 1), (signal.SIGTERM, 14)])
def test_a_signal_during_the_test_of_an_epoch_ends_the_run(
    which, batch, finished, source, tmp_path
):
    trainer = Trainer(small(), source, tmp_path, seed=3)
    count, seen = trainer._test_step, []

    def counted(images):
        seen.append(1)
        if len(seen) == batch:
            os.kill(os.getpid(), which)
        return count(images)

    trainer._test_step = counted
    with pytest.raises(Interrupted if which == signal.SIGINT else Preempted):
        trainer.run()
    assert len(seen) == batch, "the rest of the test is not waited for"
    results = Trainer(small(), source, tmp_path, seed=3).run()
    for one, other in zip(weights(finished[0]), weights(tmp_path), strict=True):
        np.testing.assert_array_equal(one, other)
    assert results["history"] == finished[1]["history"]


def test_a_log_that_cannot_be_written_does_not_end_the_run(source, tmp_path, caplog, monkeypatch):
    """As on a full disk, which may be full for one file and not for the next."""
    replacing = files.replacing

    def full(path, *rest):
        if Path(path).name in ("history.csv", "curves.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return replacing(path, *rest)

    def no_events(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "events: No space left on device")

    monkeypatch.setattr(files, "replacing", full)
    monkeypatch.setattr("ce_keras.plotting.replacing", full)
    monkeypatch.setattr(tf.summary, "create_file_writer", no_events)
    results = Trainer(small(), source, tmp_path, seed=3).run()
    assert len(results["history"]) == 2
    for name in ("history.csv", "curves.png", "events"):
        assert f"{name}" in caplog.text
    assert not (tmp_path / "history.csv").exists()


def test_a_model_that_cannot_be_written_is_named(source, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("Can't write data (file write failed)")

    monkeypatch.setattr(keras.Model, "save", full)
    with pytest.raises(OSError, match=r"file write failed.*model\.keras"):
        Trainer(small(), source, tmp_path, seed=3).run()
    monkeypatch.undo()
    assert Trainer(small(), source, tmp_path, seed=3).run()["history"], "the run was not lost"


def test_what_killed_writes_have_left_is_swept(source, tmp_path):
    Trainer(small(), source, tmp_path, seed=3)
    (tmp_path / "checkpoints").mkdir()
    left = [
        *(f"checkpoints/.step-00000000{i}-abcd_12{i}.npz" for i in range(3)),
        *(".model-abcd_123.keras", ".results-zzzzzzzz.json", ".history-a1a1a1a1.csv"),
    ]
    others = ["checkpoints/.step-notes.npz", ".model-mine.keras", "notes.txt"]
    for name in (*left, *others):
        (tmp_path / name).write_text("half")
    Trainer(small(), source, tmp_path, seed=3).run()
    assert not [name for name in left if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in others), "nothing else is deleted"


def test_two_processes_do_not_train_in_one_folder(source, tmp_path):
    # A lock of another file handle is as good as another process's.
    with (
        files.exclusive("out", tmp_path),
        pytest.raises(ValueError, match=r"out: .* is in use by another process"),
    ):
        Trainer(small(), source, tmp_path, seed=3).run()


def test_a_finished_run_is_read_where_nothing_can_be_written(finished, monkeypatch):
    def read_only(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    monkeypatch.setattr("os.open", read_only)
    folder, results = finished
    assert train(small(), folder, seed=3) == results
    assert evaluate(folder)["error"] == results["history"][-1]["error"]


@pytest.mark.parametrize("content", ["{", "[1]", "{}", "\x00"])
@pytest.mark.parametrize("name", ["recipe.json", "results.json"])
def test_damaged_files_of_a_run_are_named(name, content, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        train(small(), folder, seed=3)
    if name == "recipe.json":
        with pytest.raises(ValueError, match=r"recipe\.json"):
            evaluate(folder)


def test_git_runs_nothing_that_the_folder_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["init", "-q"],
        ["config", "core.fsmonitor", "touch fsmonitor-ran; false"],
        ["config", "filter.any.clean", "touch filter-ran; cat"],
        [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "first",
        ],
    ):
        subprocess.run(["git", *command], check=True)
    (tmp_path / ".gitattributes").write_text("* filter=any")
    for name in ("fsmonitor-ran", "filter-ran"):
        (tmp_path / name).unlink(missing_ok=True)
    revision = records.revision()
    assert revision is not None
    assert len(revision) == 40
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith("-ran")]


def test_a_folder_is_of_one_run(finished, source):
    with pytest.raises(ValueError, match=r"out: .* holds a run of another recipe or seed"):
        Trainer(small(), source, finished[0], seed=4)
    with pytest.raises(ValueError, match=r"out: .* holds a run of another recipe or seed"):
        Trainer(small(**{"optimizer.learning_rate": "0.2"}), source, finished[0], seed=3)


def state(step):
    return {"epoch": 0, "step": step, "loss": 1.5, "history": []}


def archive(content, array=(0.0, 0.0)):
    """A valid archive with an array of the right shape, and other plain values."""
    file = io.BytesIO()
    np.savez(file, content=content, variable_0=np.array(array))
    return file.getvalue()


def test_damaged_checkpoints_are_skipped(tmp_path, caplog):
    variables = [keras.Variable([1.0, 2.0])]
    checkpoints = Checkpoints(tmp_path, variables, keep=2)
    for step in range(4):
        variables[0].assign([float(step), 0.0])
        assert checkpoints.save(step, state(step))
    assert len(list(tmp_path.iterdir())) == 2
    last = tmp_path / "step-000000003.npz"
    whole = last.read_bytes()
    others = [archive(content) for content in ("[1]", "{}", "null", '{"epoch": 1, "step": 2}', "{")]
    header = whole.replace(b"PK\x03\x04", b"PK\x03\x05", 1)
    method = whole.replace(b"PK\x01\x02", b"PK\x01\x02\xff\xff", 1)  # Compressed nobody knows how.
    for damage in (
        *(whole[: len(whole) // 2], whole[:80] + b"\xff\xff" + whole[82:], b"", header, method),
        *others,
    ):
        last.write_bytes(damage)
        assert checkpoints.restore() == state(2)
        assert variables[0].numpy().tolist() == [2.0, 0.0]
        assert "step-000000003.npz is damaged" in caplog.text
        caplog.clear()
    with pytest.raises(ValueError, match="is of another model"):
        Checkpoints(tmp_path, [keras.Variable([1.0])]).restore()


ROW = {"epoch": 1, "loss": 1.0, "rate": 0.1, "error": 10.0, "top5_error": 1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"loss": np.nan}, {"loss": True}, {"step": -1}, {"step": True}, {"epoch": -1}),
        *({"epoch": False}, {"epoch": 10**9}, {"epoch": 1}, {"history": [ROW]}),
        *({"epoch": 1, "history": [row]} for row in (1, {}, {**ROW, "error": np.inf})),
        {"epoch": 2, "history": [ROW, ROW]},
    ],
)
def test_a_state_that_is_not_whole_is_skipped(wrong, tmp_path, caplog):
    (tmp_path / "step-000000001.npz").write_bytes(archive(json.dumps(state(1) | wrong)))
    assert Checkpoints(tmp_path, [keras.Variable([1.0, 2.0])]).restore() is None
    assert "step-000000001.npz is damaged, and skipped" in caplog.text


@pytest.mark.parametrize("array", [[1j, 0], ["a", "b"]])
def test_arrays_that_are_not_of_numbers_are_skipped(array, tmp_path, caplog):
    (tmp_path / "step-000000001.npz").write_bytes(archive(json.dumps(state(1)), array))
    assert Checkpoints(tmp_path, [keras.Variable([1.0, 2.0])]).restore() is None
    assert "step-000000001.npz is damaged, and skipped" in caplog.text


def test_damaged_checkpoints_take_no_place_of_new_ones(tmp_path):
    damaged = [tmp_path / f"step-{step:09d}.npz" for step in (1, 90, 100, 110)]
    for path in damaged:
        path.write_bytes(b"junk")
    variables = [keras.Variable([1.0, 2.0])]
    checkpoints = Checkpoints(tmp_path, variables, keep=3)
    assert checkpoints.restore() is None
    for step in range(2, 6):
        assert checkpoints.save(step, state(step))
    new = [tmp_path / f"step-{step:09d}.npz" for step in (3, 4, 5)]
    assert sorted(tmp_path.iterdir()) == sorted([*damaged, *new])
    assert Checkpoints(tmp_path, variables).restore() == state(5)


def test_what_is_no_checkpoint_is_left_alone(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, [keras.Variable([1.0, 2.0])], keep=1)
    checkpoints.save(1, state(1))
    shutil.copy(tmp_path / "step-000000001.npz", tmp_path / "step-best.npz")
    (tmp_path / "step-000000000.npz").mkdir()
    for step in (2, 3):
        assert checkpoints.save(step, state(step))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["step-000000000.npz", "step-000000003.npz", "step-best.npz"]
    assert checkpoints.restore() == state(3)
    assert not checkpoints.save(0, state(0))
    assert "step 0: no checkpoint, and the run goes on" in caplog.text


def test_a_full_disk_loses_nothing(tmp_path, caplog, monkeypatch):
    variables = [keras.Variable([1.0])]
    checkpoints = Checkpoints(tmp_path, variables, keep=1)
    checkpoints.save(1, state(1))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert not checkpoints.save(2, state(2))
    assert "step 2: no checkpoint" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.npz"]
    assert checkpoints.restore() == state(1)


@pytest.mark.parametrize("rate", ["1e30", "1e4"])
def test_a_loss_that_explodes_ends_the_run(rate, source, tmp_path):
    changes = {
        "optimizer.learning_rate": rate,
        "schedule.epochs": "30",
        "schedule.divide_at": "[]",
    }
    recipe = small(**RESNEXT, **changes)
    message = r"the loss is .* at epoch \d+, step \d+, learning rate .* try"
    with pytest.raises(DivergedError, match=message):
        Trainer(recipe, source, tmp_path).run()


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(precision, source, tmp_path):
    policy = keras.config.dtype_policy()
    recipe = small(**RESNEXT, **{"optimizer.precision": precision, "optimizer.clip": "1.0"})
    trainer = Trainer(recipe, source, tmp_path)
    assert keras.config.dtype_policy() is policy
    assert trainer.model.get_layer("conv1_conv").compute_dtype == precision[6:]
    assert np.isfinite(trainer.run()["history"][-1]["loss"])


def test_labels_can_be_smoothed():
    losses = build_loss(small(**{"optimizer.label_smoothing": "0.1"}))
    logits, labels = np.array([[2.0, 0.0, -1.0]], "float32"), np.array([0])
    wanted = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    expected = wanted(np.eye(3)[labels], logits)
    np.testing.assert_allclose(losses(logits, labels)[0], expected, rtol=1e-6)


def test_an_epoch_goes_on_from_any_step(source):
    feed = InputPipeline(small(), source, seed=1)
    whole = [(x.numpy(), y.numpy()) for x, y in feed.train(epoch=1)]
    rest = [(x.numpy(), y.numpy()) for x, y in feed.train(epoch=1, step=2)]
    assert [len(y) for _, y in whole] == [32, 32, 32, 4]
    for one, other in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    other = [y.numpy() for _, y in feed.train(epoch=2)]
    assert (other[0] != whole[0][1]).any()
    assert sorted(np.concatenate(other)) == sorted(np.concatenate([y for _, y in whole]))


def test_images_are_normalised_by_the_training_images(source):
    train = source.splits[0].images.astype(float)
    for kind, axes in {"global": None, "channel": (0, 1, 2), "mean_image": 0}.items():
        feed = InputPipeline(small(**{"data.normalize": kind}), source, seed=0)
        images = np.concatenate([x for x, _ in feed.test()])
        scale = train.std() if kind == "mean_image" else train.std(axis=axes)
        expected = (source.splits[1].images - train.mean(axis=axes)) / scale
        np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4)


# Every recipe ------------------------------------------------------------------------------------

FEW = {"schedule.epochs": "1", "schedule.divide_at": "[]"}
RECIPES = {
    "cifar10": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "4"},
    "cifar100": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "4"},
    "imagenet": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "2"},
    "imagenet32": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "4"},
    "imagenet64": {"model.cardinality": "2", "model.width": "2", "schedule.batch_size": "2"},
    "mnist": {"schedule.batch_size": "4"},
    "fashion_mnist": {"data.limit": "30", "data.test_limit": "30", "schedule.batch_size": "10"},
}


@pytest.mark.parametrize(
    "name",
    [
        # A deep ResNeXt is traced for ten seconds and more.
        pytest.param(name, marks=() if name in ("mnist", "fashion_mnist") else pytest.mark.slow)
        for name in RECIPES
    ],
)
def test_every_recipe_takes_three_steps(name, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    recipe = read_recipe(name, {**FEW, **RECIPES[name]})
    count = 3 * recipe.schedule.batch_size
    monkeypatch.setattr("ce_keras.training.datasets._SHUFFLE_BUFFER", 4)
    with tfds.testing.mock_data(num_examples=count):
        monkeypatch.setattr("ce_keras.training.datasets._is_prepared", lambda _: True)
        trainer = Trainer(recipe, load_dataset(recipe.data), tmp_path)
        if name != "fashion_mnist":
            trainer.steps, trainer._test_steps = 3, (count, count)
        results = trainer.run()
    assert int(trainer.optimizer.iterations) == 3
    assert 0 <= results["top5_error"] <= results["error"] <= 100


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_plan(name, capsys):
    assert main(["train", name, "--mode", "dual", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    recipe = read_recipe(name)
    assert planned["steps"] == planned["steps_per_epoch"] * recipe.schedule.epochs
    if name == "cifar10":
        assert planned["model"] == "resnext29_10x10d"
        assert planned["parameters"] == resnext("resnext29").params(10, 10)
        assert planned["expected_error"] == 4.21


def test_missing_images_are_said_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name, what in {"cifar10": "run: tfds build cifar10", "imagenet": "ILSVRC2012"}.items():
        assert main(["train", name, "--out", str(tmp_path / name)]) == 2
        assert what in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_known_sets_are_what_tensorflow_datasets_says():
    import tensorflow_datasets as tfds

    for name, known in KNOWN.items():
        features = tfds.builder(name).info.features
        assert features["label"].num_classes == known.classes
        shape = features["image"].shape
        assert None in shape or shape == known.shape


# From the shell ----------------------------------------------------------------------------------


def test_train_evaluate_and_export_from_the_shell(tmp_path, capsys):
    sets = [f"{key}={value}" for key, value in SMALL.items()]
    arguments = [part for each in sets for part in ("--set", each)]
    out = tmp_path / "runs"
    assert main(["train", "fashion_mnist", *arguments, "--runs", "2", "--out", str(out)]) == 0
    assert " ± " in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["runs"] == 2
    assert summary["standard_error"] == pytest.approx(abs(np.diff(summary["errors"])[0]) / 2)
    begun = time.perf_counter()
    # Done already: nothing is trained again.
    assert main(["train", "fashion_mnist", *arguments, "--runs", "2", "--out", str(out)]) == 0
    assert time.perf_counter() - begun < 60
    run = str(out / "run-1")
    capsys.readouterr()
    assert main(["evaluate", run, "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert main(["export", run, "--format", "saved_model"]) == 0
    exported = tf.saved_model.load(out / "run-1/model")
    model = keras.models.load_model(out / "run-1/model.keras")
    x = np.random.default_rng(0).normal(size=(3, 28, 28, 1)).astype("float32")
    np.testing.assert_allclose(exported.serve(x), model(x), rtol=1e-4, atol=1e-5)
    for form, suffix in {"onnx": ".onnx", "litert": ".tflite"}.items():
        assert main(["export", run, "--format", form]) == 0
        assert (out / f"run-1/model{suffix}").stat().st_size > 1000
    assert 0 <= errors["error"] <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "fashion_mnist", "--set", "rate"], "--set: got 'rate'; write KEY=VALUE"),
        (["train", "nowhere"], "there is no file nowhere"),
        (["train", "fashion_mnist", "--runs", "0", "--out", "x"], "runs: got 0"),
        (["evaluate", "nowhere"], "run: nowhere has no recipe.json"),
        (["export", "nowhere"], "run: nowhere has no recipe.json"),
    ],
)
def test_bad_commands(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_nothing_but_an_earlier_export(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    models = tmp_path / "models"
    models.mkdir()
    (models / "precious.txt").write_text("years of work")
    for form in ("saved_model", "litert", "onnx", "keras"):
        for _ in range(2):  # The second replaces the first.
            written = export(folder, form, models)
            assert written.parent == models
        assert (models / "precious.txt").read_text() == "years of work"
    assert len(list(models.iterdir())) == 5, "no half-written file is left"
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    # The run itself: a folder like any other, into which the model goes.
    assert export(folder, "saved_model", folder) == folder / "model"
    assert (folder / "results.json").exists()
    # What stands in the way is not ours.
    (models / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"to: .* is there, and no earlier export"):
        export(folder, "saved_model", models)
    (models / "model.onnx").write_text("not an export")
    with pytest.raises(ValueError, match=r"to: .*model\.onnx is there"):
        export(folder, "onnx", models / "model.onnx")
    assert (models / "model.onnx").read_text() == "not an export"
    with pytest.raises(ValueError, match=r"to: got .*x\.txt'; it must end in \.keras"):
        export(folder, "keras", models / "x.txt")


def test_an_export_never_takes_the_place_of_another_run(finished, tmp_path, monkeypatch):
    one, other = tmp_path / "run1", tmp_path / "run2"
    for folder in (one, other):
        shutil.copytree(finished[0], folder)
    (other / "model.keras").write_bytes(before := (other / "model.keras").read_bytes() + b" ")
    monkeypatch.chdir(other)
    for to in (other, other / "model.keras", ".", other / "new/model.keras"):
        with pytest.raises(ValueError, match=r"to: .* is in .*run2, the folder of another run"):
            export(one, "keras", to)
    with pytest.raises(ValueError, match=r"to: .*run2, the folder of another run"):
        export(one, "saved_model", other)
    assert (other / "model.keras").read_bytes() == before
    own = (one / "model.keras").stat().st_mtime_ns
    assert export(one, "keras") == one / "model.keras"
    assert (one / "model.keras").stat().st_mtime_ns == own, "it is there, and not written again"


def test_an_export_is_told_by_all_that_it_holds(finished, tmp_path):
    with zipfile.ZipFile(tmp_path / "docs.keras", "w") as archive:
        archive.writestr("thesis.txt", "years of work")
    (tmp_path / "begins.onnx").write_bytes(b"\x08 years of work")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk/saved_model.pb").write_text("years of work")
    thesis = export(finished[0], "saved_model", tmp_path / "real") / "assets/thesis.txt"
    thesis.write_text("years of work")
    for name, form in {"docs.keras": "keras", "begins.onnx": "onnx"}.items():
        with pytest.raises(ValueError, match=rf"to: .*{name} is there, and no earlier export"):
            export(finished[0], form, tmp_path / name)
    for name in ("real", "junk"):
        assert export(finished[0], "saved_model", tmp_path / name) == tmp_path / name / "model"
    assert thesis.read_text() == (tmp_path / "junk/saved_model.pb").read_text() == "years of work"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_export_that_ends_early_leaves_the_earlier_one(error, finished, tmp_path, monkeypatch):
    export(finished[0], "saved_model", tmp_path / "model")
    before = (tmp_path / "model/saved_model.pb").stat().st_ino

    def ended(*_):
        raise error

    monkeypatch.setattr(Path, "replace", ended)
    with pytest.raises(error):
        export(finished[0], "saved_model", tmp_path / "model")
    assert (tmp_path / "model/saved_model.pb").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_arrays_know_their_counts(source):
    assert isinstance(source, ArrayDataset)
    assert source.counts == (100, 200)
    for images, each in zip(source.splits, (10, 20), strict=True):
        assert np.bincount(images.labels).tolist() == [each] * 10
    assert plan(small())["test_images"] == 200
    assert source.shape == (28, 28, 1)
