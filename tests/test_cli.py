import json
import subprocess
import sys

import keras
import pytest

from ce_keras import __version__, demo, geometry
from ce_keras.cli import main
from ce_keras.training.images import Images


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one command."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse stops by itself.
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_search_prints_the_solution(capsys):
    code, output, _ = run(capsys, "search", "resnext29", "--mode", "dual")
    assert code == 0
    assert output.startswith("10x10d: dual optimum of resnext29")
    assert "4,223,986" in output


def test_search_prints_json(capsys):
    code, output, _ = run(
        capsys, "search", "resnext50", "--json", "--multiple-of", "8", "--tolerance", "0"
    )
    assert code == 0
    assert json.loads(output)["design"] == "15x8d"


@pytest.mark.parametrize(
    ("widths", "design"), [("12", "8x12d"), ("12,25", "8x12d"), ("11-12", "8x12d")]
)
def test_search_takes_widths(capsys, widths, design):
    _, output, _ = run(
        capsys, "search", "resnext29", "--mode", "dual", "--widths", widths, "--json"
    )
    assert json.loads(output)["design"] == design


def test_search_draws(capsys, tmp_path):
    path = tmp_path / "curve.svg"
    code, _, _ = run(capsys, "search", "resnext29", "--plot", str(path))
    assert code == 0
    assert path.read_text().startswith("<?xml")


def test_list_prints_every_published_design_and_no_difference(capsys):
    code, output, _ = run(capsys, "list")
    assert code == 0
    assert len(output.splitlines()) == 27
    assert "13,743,646" in output
    assert "differs" not in output
    _, output, _ = run(capsys, "list", "--json")
    assert all(row["agrees"] for row in json.loads(output))


def test_info_says_what_is_known(capsys):
    assert main(["info", "resnext50_4x16d"]) == 0
    printed = capsys.readouterr().out
    assert "resnext50_4x16d: dual design, published in Table 2b" in printed
    assert "17,069,096 parameters" in printed
    assert main(["info", "resnext11", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["origin"] == "derived"
    assert main(["info", "resnext11_7x7d"]) == 0
    assert "trained weights: resnext11_7x7d/fashion_mnist" in capsys.readouterr().out
    assert main(["info", "resnet5"]) == 2
    assert "did you mean 'resnet50'?" in capsys.readouterr().err


def test_build_saves_a_model(capsys, tmp_path):
    path = tmp_path / "model.keras"
    code, output, _ = run(
        capsys, "build", "resnext11", "--mode", "dual", "--classes", "5", "--save", str(path)
    )
    assert code == 0
    assert "resnext11_7x7d" in output
    assert keras.models.load_model(path).output_shape == (None, 5)


def test_build_prints_json(capsys):
    _, output, _ = run(
        capsys, "build", "resnext11", "--cardinality", "3", "--width", "5", "--seed", "1", "--json"
    )
    content = json.loads(output)
    assert content["design"] == "3x5d"
    assert content["parameters"] > 100_000


@pytest.mark.slow  # Four networks are trained.
def test_demo_trains_four_networks_and_writes_its_results(capsys, tmp_path, monkeypatch):
    load = demo.load

    def few(**settings):
        train, test = load(**settings)
        return train, Images(*(part[:100] for part in test))

    monkeypatch.setattr(demo, "load", few)
    settings = ["--epochs", "1", "--images", "100", "--batch-size", "50"]
    code, output, errors = run(capsys, "demo", "--out", str(tmp_path), *settings)
    assert code == 0
    for word in ("28x7d", "7x7d", "1x64d", "1,208,938", "439,201", "±", "ms/step"):
        assert word in output
    assert "epoch 1/1" not in errors, "bars go to terminals only"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["images"] == 100
    assert (tmp_path / "curve.png").exists()
    assert [(row["role"], row["design"]) for row in results["trained"]] == [
        ("baseline", "1x64d"),
        ("primal", "28x7d"),
        ("dual", "7x7d"),
        ("narrower", "1x28d"),
    ]
    network = geometry.baseline(demo.NETWORK)
    for row in results["trained"]:
        design = geometry.Design.parse(row["design"])
        assert row["parameters"] == network.params(*design)
        assert row["flops"] == network.flops(*design)
        assert row["seconds_per_step"] > 0
        assert 0 < row["test_error"] < 100
        p = row["test_error"] / 100
        assert row["test_error_std"] == pytest.approx(100 * (p * (1 - p) / 100) ** 0.5)


def test_demo_json_is_the_file(capsys, tmp_path, monkeypatch):
    row = demo.Trained("dual", "7x7d", 439_201, 8_923_390, 0.04, 12.45, 0.74)
    monkeypatch.setattr(demo, "compare", lambda *_, **__: [row])  # Trained above.
    settings = ["--epochs", "1", "--images", "100", "--batch-size", "50", "--json"]
    _, output, _ = run(capsys, "demo", "--out", str(tmp_path), *settings)
    assert json.loads(output) == json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "resnext30"], "ce-keras search: baseline: unknown name 'resnext30'"),
        (["search", "resnext29", "--alpha", "-1"], "ce-keras search: alpha: got -1.0"),
        (["search", "resnext29", "--widths", "300"], "ce-keras search: widths: got 300"),
        (["search", "resnext29", "--widths", "ten"], "'ten' is not a width"),
        (["search", "resnext29", "--mode", "both"], "invalid choice: 'both'"),
        (["build", "resnet5"], "ce-keras build: NAME: got 'resnet5'; did you mean 'resnet50'?"),
        (["build", "resnet50", "--width", "3"], "ce-keras build: --width: resnet50 is one network"),
        (["build", "resnext11", "--width", "3"], "ce-keras build: cardinality: needed too"),
        (["build", "resnext11", "--save", "model.h5"], "it must end in .keras"),
        (["demo", "--epochs", "0", "--out", "OUT"], "ce-keras demo: epochs: got 0"),
        (["demo", "--source", "none", "--out", "OUT"], "ce-keras demo: source: got 'none'"),
        (["demo", "--images", "9", "--out", "OUT"], "ce-keras demo: images: got 9"),
        (["demo", "--seed", "-1", "--out", "OUT"], "ce-keras demo: seed: got -1"),
        (["build", "resnext11", "--seed", "-1"], "ce-keras build: seed: got -1"),
        (["search", "fc", "--widths", "500x5"], "ce-keras search: fc: needs its sizes"),
        (["search", "resnext29", "--inputs", "3"], "ce-keras search: --inputs: only fc takes it"),
        (["search", "fc", "--alpha", "much"], "'much' is not a number or closed_form"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_is_one_clear_line_and_a_failure(capsys, tmp_path, arguments, message):
    arguments = [str(tmp_path) if word == "OUT" else word for word in arguments]
    code, output, errors = run(capsys, *arguments)
    assert code == 2
    assert not output
    assert not list(tmp_path.iterdir())
    assert message in errors.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", ["search", "fit-alpha", "list", "build", "demo"])
def test_help_has_an_example(capsys, command):
    code, output, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"example: ce-keras {command}" in output


def test_the_installed_command_answers():
    command = [sys.executable, "-m", "ce_keras.cli", "search", "resnext29", "--json"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(output)["design"] == "37x10d"


def test_the_version_is_printed(capsys):
    code, output, _ = run(capsys, "--version")
    assert code == 0
    assert output == f"ce-keras {__version__}\n"


def test_debug_raises_what_is_otherwise_one_line(capsys, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"junk")
    code, _, errors = run(capsys, "collegialize", str(path))
    assert code == 2
    (line,) = errors.splitlines()
    assert "model.keras is not a .keras file, or is cut off" in line
    with pytest.raises(ValueError, match=r"model\.keras is not a \.keras file"):
        main(["collegialize", str(path), "--debug"])


def test_a_damaged_file_is_one_clear_line(capsys, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.xz").write_bytes(b"not compressed")
    code, _, errors = run(capsys, "demo", "--source", str(tmp_path), "--out", str(tmp_path / "o"))
    assert code == 2
    assert "train-images-idx3-ubyte.xz is damaged" in errors
    assert len(errors.splitlines()) == 1


def test_a_plot_makes_its_folder(capsys, tmp_path):
    path = tmp_path / "new" / "curve.png"
    assert run(capsys, "search", "resnext29", "--plot", str(path))[0] == 0
    assert path.stat().st_size > 1000


def test_figure_3_from_the_shell_with_nothing_fitted(capsys):
    network = ["fc", "--inputs", "748", "--widths", "500x5", "--alpha", "closed_form"]
    _, output, _ = run(capsys, "search", *network, "--mode", "dual", "--json")
    content = json.loads(output)
    assert content["baseline"] == "fc-1x500d"
    assert content["law"] == "closed form"
    assert "12x48d" in content["near_optimal"]


def test_fit_alpha_from_the_shell(capsys, tmp_path):
    picture = str(tmp_path / "alpha.png")
    _, output, _ = run(capsys, "fit-alpha", "bottleneck", "--draws", "200", "--plot", picture)
    assert "alpha = " in output
    assert (tmp_path / "alpha.png").stat().st_size > 1000
    _, output, _ = run(capsys, "fit-alpha", "fc", "--inputs", "748", "--widths", "500x5", "--json")
    assert json.loads(output)["method"] == "closed_form"
