"""Every example and benchmark runs, at a small size."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import fresh
import pytest

ROOT = Path(__file__).parent.parent

SMALL = {
    "examples/quickstart.py": ["--images", "100"],
    "benchmarks/grouped_conv.py": ["--small", "--rounds", "2", "--batch", "1", "--out", "."],
    "benchmarks/accelerate.py": ["--small", "--rounds", "2", "--batch", "1", "--out", "."],
    "benchmarks/exported.py": ["--small", "--rounds", "2", "--out", "."],
    "benchmarks/block_dense.py": ["--small", "--rounds", "2", "--out", "."],
    "benchmarks/search.py": ["--rounds", "2", "--out", "."],
    "benchmarks/ntk.py": ["--small", "--rounds", "2", "--out", "."],
    "benchmarks/pipeline.py": ["--small", "--rounds", "2", "--out", "."],
    "benchmarks/oracle_vs_sweep.py": [
        *("--seeds", "1", "--epochs", "1", "--images", "50"),
        *("--widths", "12", "35", "100", "--out", "."),
    ],
    "benchmarks/collegialize.py": ["--only", "MobileNet", "--out", "."],
    "benchmarks/latency.py": [
        *("--network", "resnext11", "--batch", "1", "--phases", "infer"),
        *("--rounds", "2", "--out", "."),
    ],
    "benchmarks/split_init.py": [
        *("--only", "dense 200x4", "--seeds", "1", "--images", "100", "--out", ".")
    ],
    "examples/shrink_keras_applications.py": ["--size", "32", "--steps", "1"],
    "examples/compress_trained_model.py": ["--images", "200", "--epochs", "1"],
    "benchmarks/calibration.py": [
        *("--network", "dense", "--seeds", "1", "--images", "60", "--train", "200"),
        *("--epochs", "1", "--out", "."),
    ],
    "examples/tune_keras_model.py": ["--images", "50", "--epochs", "1"],
    "examples/walkthrough.py": [],
    "examples/classify_image.py": [],
}
WRITES = {
    "examples/quickstart.py": ["curve.png"],
    "benchmarks/grouped_conv.py": ["grouped_conv.json", "grouped_conv.md"],
    "benchmarks/accelerate.py": ["accelerate.md"],
    "benchmarks/exported.py": ["exported.md"],
    "benchmarks/block_dense.py": ["block_dense.md"],
    "benchmarks/search.py": ["search.md"],
    "benchmarks/ntk.py": ["ntk.md"],
    "benchmarks/pipeline.py": ["pipeline.md"],
    "benchmarks/oracle_vs_sweep.py": ["oracle_vs_sweep.md", "oracle_vs_sweep.png"],
    "benchmarks/collegialize.py": ["collegialize.md", "collegialize.json"],
    "benchmarks/latency.py": ["latency.md", "latency.json", "latency_resnext11_infer.png"],
    "benchmarks/split_init.py": ["split_init.md"],
    "examples/shrink_keras_applications.py": ["smaller.keras"],
    "examples/compress_trained_model.py": ["smaller.tflite"],
    "benchmarks/calibration.py": ["calibration.json", "calibration.md"],
    "examples/tune_keras_model.py": [],
    "examples/walkthrough.py": [],
    "examples/classify_image.py": [],
}


def test_no_script_is_forgotten():
    measured = {path for path in ROOT.glob("benchmarks/*.py") if "__main__" in path.read_text()}
    # The peer runs where its own versions are installed, weights are of a finished run,
    # tests/zoo/test_cards.py writes the cards, and the scripts for GPUs have tests of their own.
    for name in (
        "ntk_cases",
        "ntk_gpu",
        "ntk_peer",
        "zoo_weights",
        "zoo_cards",
        "cifar10_gpu",
        "gpu_speed",
    ):
        measured.remove(ROOT / f"benchmarks/{name}.py")
    found = {*ROOT.glob("examples/*.py"), *measured}
    assert {str(path.relative_to(ROOT)) for path in found} == set(SMALL)


FAST = ("benchmarks/search.py",)  # Others train or time for longer.


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


@pytest.mark.slow
def test_the_script_for_gpus_runs_without_one(tmp_path, colour_images):
    pytest.importorskip("torch")
    words = ["--part", "resnext11", "--data", colour_images, "--out", tmp_path / "out"]
    words += ["--designs", "2x2d", "1x3d", "--seeds", 1, "--epochs", 1, "--most-steps", 1]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    # An interpreter of its own: the forks have imported Keras with TensorFlow.
    command = [sys.executable, ROOT / "benchmarks/cifar10_gpu.py", *map(str, words)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    lines = (tmp_path / "out/resnext11_results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["design"] for row in rows] == ["2x2d", "1x3d"] * 2
    assert {row["regime"] for row in rows} == {"all images", "5,000 images"}
    for row in rows:
        assert 0 <= row["epochs"][-1]["test_error"] <= 100
        assert row["epochs"][-1]["train_loss"] > 0


@pytest.mark.slow
def test_steps_for_gpus_are_timed_without_one(tmp_path):
    pytest.importorskip("torch")
    words = ["--part", "steps", "--batch", 1, "--side", 32, "--designs", "2x2d", "--out", tmp_path]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    command = [sys.executable, ROOT / "benchmarks/gpu_speed.py", *map(str, words)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert "ce_keras" in {row["who"] for row in rows}
    assert all(row["ms"] > 0 for row in rows)


def test_the_example_classifies_the_picture_that_comes_with_it(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["classify_image.py"])
    runpy.run_path(str(ROOT / "examples/classify_image.py"), run_name="__main__")
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split() == ["ship", "100.0%"]
