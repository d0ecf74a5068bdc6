"""Every example and benchmark runs, at a small size."""

import os
from pathlib import Path

import fresh
import pytest

ROOT = Path(__file__).parent.parent

SMALL = {
    "examples/quickstart.py": ["--images", "100"],
    "benchmarks/grouped_conv.py": ["--small", "--rounds", "2", "--batch", "1", "--out", "."],
    "benchmarks/block_dense.py": ["--small", "--rounds", "2", "--out", "."],
    "benchmarks/search.py": ["--rounds", "2", "--out", "."],
    "benchmarks/ntk.py": ["--small", "--rounds", "2", "--out", "."],
    "benchmarks/pipeline.py": ["--small", "--rounds", "2", "--out", "."],
    "benchmarks/oracle_vs_sweep.py": [
        *("--seeds", "1", "--epochs", "1", "--images", "50"),
        *("--widths", "12", "35", "100", "--out", "."),
    ],
    "benchmarks/collegialize.py": ["--only", "MobileNet", "--out", "."],
    "benchmarks/split_init.py": [
        *("--only", "dense 200x4", "--seeds", "1", "--images", "100", "--out", ".")
    ],
    "examples/shrink_keras_applications.py": ["--size", "32", "--steps", "1"],
    "examples/tune_keras_model.py": ["--images", "50", "--epochs", "1"],
    "examples/walkthrough.py": [],
}
WRITES = {
    "examples/quickstart.py": ["curve.png"],
    "benchmarks/grouped_conv.py": ["grouped_conv.json", "grouped_conv.md"],
    "benchmarks/block_dense.py": ["block_dense.md"],
    "benchmarks/search.py": ["search.md"],
    "benchmarks/ntk.py": ["ntk.md"],
    "benchmarks/pipeline.py": ["pipeline.md"],
    "benchmarks/oracle_vs_sweep.py": ["oracle_vs_sweep.md", "oracle_vs_sweep.png"],
    "benchmarks/collegialize.py": ["collegialize.md", "collegialize.json"],
    "benchmarks/split_init.py": ["split_init.md"],
    "examples/shrink_keras_applications.py": ["smaller.keras"],
    "examples/tune_keras_model.py": [],
    "examples/walkthrough.py": [],
}


def test_no_script_is_forgotten():
    measured = {path for path in ROOT.glob("benchmarks/*.py") if "__main__" in path.read_text()}
    # The peer runs where its own versions are installed, weights are of a finished run, and
    # tests/zoo/test_cards.py writes the cards.
    for name in ("ntk_peer", "zoo_weights", "zoo_cards"):
        measured.remove(ROOT / f"benchmarks/{name}.py")
    found = {*ROOT.glob("examples/*.py"), *measured}
    assert {str(path.relative_to(ROOT)) for path in found} == set(SMALL)


FAST = ("benchmarks/search.py", "examples/tune_keras_model.py")  # Others train or time for longer.


@pytest.mark.parametrize(
    "script",
    [pytest.param(each, marks=() if each in FAST else pytest.mark.slow) for each in SMALL],
)
def test_scripts_run(script, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "agg", "WALKTHROUGH_IMAGES": "100"}
    fresh.run([ROOT / script, *SMALL[script]], environment, tmp_path)
    for name in WRITES[script]:
        assert (tmp_path / name).stat().st_size > 0


def test_the_table_of_keras_applications_is_what_was_measured(tmp_path):
    docs = ROOT / "docs/benchmarks"
    (tmp_path / "collegialize.json").write_text((docs / "collegialize.json").read_text())
    fresh.run([ROOT / "benchmarks/collegialize.py", "--page", "--out", tmp_path])
    assert (tmp_path / "collegialize.md").read_text() == (docs / "collegialize.md").read_text()
