"""The README's commands and outputs are real."""

import re
import shlex
from pathlib import Path

import pytest

from ce_keras.cli import main
from ce_keras.geometry import Design, baseline

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def readers_own(tmp_path, monkeypatch):
    """A reader's model, trained and in a file, and data for it."""
    import keras
    import numpy as np

    monkeypatch.chdir(tmp_path)
    hidden = [keras.layers.Dense(32, "relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((8,)), *hidden, keras.layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 8)).astype("float32"), rng.integers(0, 3, 20)
    model.fit(x, y, verbose=0)
    model.save("model.keras")
    return {"x": x, "y": y}


def test_python_blocks_run_and_say_what_the_text_says(capsys, readers_own):
    namespace = dict(readers_own)
    for block in blocks("python"):
        exec(block, namespace)
    lines = capsys.readouterr().out.splitlines()
    assert any("1 ensemble" in line for line in lines)
    derived = lines.index("10x10d 3.26 times fewer parameters")
    assert namespace["model"].name == "resnext29_10x10d"
    Design.parse(lines[derived + 1])
    # What a comment says is printed is printed.
    said = re.findall(r"print\(.*\)  # (.*->.*)", TEXT)
    assert said
    assert set(said) <= set(lines)


@pytest.mark.parametrize("block", blocks("console"))
def test_console_blocks_print_what_is_printed(block, capsys):
    command, _, output = block.removeprefix("$ ").partition("\n")
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == output


def test_the_demonstrations_table_has_todays_designs_and_counts():
    (block,) = blocks("text")
    network = baseline("resnext11")
    rows = [line.split() for line in block.splitlines()[1:5]]
    assert [row[0] for row in rows] == ["baseline", "primal", "dual", "narrower"]
    for _, text, parameters, flops, *_ in rows:
        design = Design.parse(text)
        assert int(parameters.replace(",", "")) == network.params(*design)
        assert int(flops.replace(",", "")) == network.flops(*design)
    sizes = [int(row[2].replace(",", "")) for row in rows]
    assert f"{sizes[0] / sizes[2]:.2f} times fewer parameters" in TEXT


def test_the_papers_errors_are_the_papers():
    from ce_keras.training import read_recipe

    (row,) = [line for line in TEXT.splitlines() if line.startswith("| ResNeXt-29, CIFAR-10")]
    expected = read_recipe("cifar10").expected.error
    for design, error in re.findall(r"(\d+x\d+d), [*]*[\d.]+ M[*]*: [*]*([\d.]+) %", row):
        assert expected[f"resnext29_{design}"] == float(error)


def test_make_targets_and_files_that_are_named_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^make ([\w-]+)$|`make ([\w-]+)`", TEXT, re.MULTILINE)
    assert {first or second for first, second in named} == {
        "demo",
        "docs",
        "test",
        "test-slow",
        "lint",
        "wheel",
        "peers",
        "torch",
    }
    assert {first or second for first, second in named} <= set(targets)
    for path in re.findall(r"\]\((?!http|#)(.*?)\)", TEXT):
        assert (ROOT / path).exists(), path
