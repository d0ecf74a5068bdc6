"""Exports: they replace nothing but an earlier export."""

import shutil
import zipfile
from pathlib import Path

import pytest

from ce_keras.training import (
    export,
)


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
