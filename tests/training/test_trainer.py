"""One run: it learns, resumes where it was killed, and names what is wrong."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import fresh
import keras
import numpy as np
import pytest
import tensorflow as tf
from recipes_for_tests import RESNEXT, small

from ce_keras import files
from ce_keras.training import (
    evaluate,
    records,
)
from ce_keras.training.building import build_loss
from ce_keras.training.datasets import load_dataset
from ce_keras.training.interruption import Interrupted, Preempted
from ce_keras.training.trainer import DivergedError, Trainer


def weights(folder):
    return keras.models.load_model(folder / "model.keras").get_weights()


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


@pytest.mark.parametrize(
    ("which", "step", "code"),
    [
        ("SIGKILL", 3, -signal.SIGKILL),
        # test_command.py sends these two to the command.
        pytest.param("SIGTERM", 5, 75, marks=pytest.mark.slow),
        pytest.param("SIGINT", 5, 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(which, step, code, finished, source, tmp_path):
    assert_resumed(small(), which, step, code, finished, source, tmp_path)


@pytest.mark.slow  # A ResNeXt, which keeps statistics of its batches, is traced three times.
def test_a_killed_run_of_a_resnext_ends_as_if_it_had_not_been(source, tmp_path):
    recipe = small(**RESNEXT)
    finished = tmp_path / "whole", Trainer(recipe, source, tmp_path / "whole", seed=3).run()
    killed = tmp_path / "killed"
    assert_resumed(recipe, "SIGKILL", 3, -signal.SIGKILL, finished, source, killed)


def assert_resumed(recipe, which, step, code, finished, source, tmp_path):
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


def test_a_folder_is_of_one_run(finished, source):
    with pytest.raises(ValueError, match=r"out: .* holds a run of another recipe or seed"):
        Trainer(small(), source, finished[0], seed=4)
    with pytest.raises(ValueError, match=r"out: .* holds a run of another recipe or seed"):
        Trainer(small(**{"optimizer.learning_rate": "0.2"}), source, finished[0], seed=3)


def test_losses_are_fetched_together_and_make_the_same_history(finished, source, tmp_path):
    one = Trainer(small(), source, tmp_path, seed=3)
    step, taken, fetched = one._train_step, [], []

    class Result:
        """A result that records how many steps had been taken when it is fetched."""

        def __init__(self, value):
            self.value = value

        def __array__(self, *_, **__):
            fetched.append(len(taken))
            return self.value.numpy()

    def counted(*arguments):
        taken.append(1)
        return Result(step(*arguments))

    one._train_step = counted
    assert one.run()["history"] == finished[1]["history"]
    # The first of an epoch is waited for, to time the others. Four steps an epoch are fewer than
    # are taken between two fetches.
    assert fetched == [1] + [4] * 4 + [5] + [8] * 4


def test_a_loss_that_is_not_finite_is_named_by_its_own_step(source, tmp_path):
    one = Trainer(small(), source, tmp_path, seed=3)
    losses = iter([1.0, 2.0, np.nan, np.nan])
    one._train_step = lambda *_: np.array([next(losses), 0.0])
    with pytest.raises(DivergedError, match="the loss is nan at epoch 1, step 2,"):
        one.run()
    assert not list((tmp_path / "checkpoints").glob("*.npz")), "no such state is saved"


@pytest.mark.parametrize("rate", ["1e30", pytest.param("1e4", marks=pytest.mark.slow)])
def test_a_loss_that_explodes_ends_the_run(rate, source, tmp_path):
    changes = {
        "optimizer.learning_rate": rate,
        "schedule.epochs": "30",
        "schedule.divide_at": "[]",
        "data.test_limit": "20",
    }
    recipe = small(**RESNEXT, **changes)
    with pytest.raises(
        DivergedError, match=r"the loss is .* at epoch \d+, step \d+, learning rate .* try"
    ):
        Trainer(recipe, source, tmp_path).run()


@pytest.mark.parametrize(
    "precision", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"]
)
def test_half_precision(precision, tmp_path):
    policy = keras.config.dtype_policy()
    # Convolutions of half precision are slow on CPUs: one step of few images.
    few = {"data.limit": "20", "data.test_limit": "20", "schedule.epochs": "1"}
    few |= {"schedule.divide_at": "[]"}
    changes = {"optimizer.precision": precision, "optimizer.clip": "1.0"}
    recipe = small(**RESNEXT, **few, **changes)
    source = load_dataset(recipe.data)
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
