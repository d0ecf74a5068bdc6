import json
import stat

import pytest

from ce_keras import files


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "notes.txt"
    with files.replacing(path) as part:
        part.write_text("all")
        assert part.suffix == ".txt"
        assert not path.exists()
    assert path.read_text() == "all"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_finished_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    with files.replacing(tmp_path / "ours") as part:
        part.touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "ours")}
    assert len(modes) == 1


def test_json_is_strict(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": [1, 2.5]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, 2.5]}
