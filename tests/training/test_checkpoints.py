"""Checkpoints: whole or not there, and skipped where they are damaged."""

import errno
import io
import json
import os
import shutil

import keras
import numpy as np
import pytest

from ce_keras.training.checkpoints import Checkpoints


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
