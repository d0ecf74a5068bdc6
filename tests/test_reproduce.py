import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from ce_keras.geometry import Design
from ce_keras.reproduce import NAMES, Result, fig4, reproduce, statistics, theorem1
from ce_keras.reproduce.page import agreement
from ce_keras.reproduce.protocol import Check, experiment
from ce_keras.reproduce.result import index as index_of
from ce_keras.reproduce.store import Points

DOCS = Path(__file__).parents[1] / "docs/reproduction"

# A small instance of each; `cifar10`, whose images are not embedded, has a file of its own.
SMALL = {
    "assumption1": {"draws": 200, "network_draws": 20, "width": 4, "narrow": 2, "channels": 8},
    "fig2": {"width": 20, "angles": 5, "paths": (1, 4), "draws": 40},
    "lemma1": {"width": 20, "paths": (1, 2, 4), "ensembles": 50, "widths": (3, 20), "draws": 200},
    "theorem1": {"ensembles": 4, "paths": (1, 4), "widths": (8, 16), "steps": 5},
    "fig3": {},
    "fig4": {
        "images": 100,
        "epochs": 1,
        "batch": 20,
        "repetitions": 2,
        "at_once": 2,
        "depth": 3,
        "base": 12,
        "widths": (4, 12),
    },
    "alpha": {"draws": 100, "pooled_draws": 10, "size": 3, "channels": 8},
    "exact_law": {"correlations": (0.0, 1.0), "widths": (2, 8), "draws": 200},
    "fig6": {},
    "table1": {
        "changes": {"data.limit": 40, "schedule.epochs": 1, "schedule.divide_at": "[]"},
        "runs": 1,
        # The baseline's own, which is there anyhow.
        "widths": (64,),
    },
    "table2": {},
}


def test_everything_has_an_instance():
    elsewhere = {"cifar10", "attention", "stage_widths", "fit_prediction", "network_variance"}
    assert {*SMALL} | elsewhere == {*NAMES}


@pytest.mark.parametrize(
    "name",
    # These train networks, one after another.
    [
        pytest.param(each, marks=pytest.mark.slow if each in ("table1", "fig4") else ())
        for each in SMALL
    ],
)
def test_what_is_written_can_be_told_again(name, tmp_path):
    result = reproduce(name, out=tmp_path, settings=SMALL[name])
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{name}.{suffix}" for suffix in ("json", "md", "png")),
        "index.md",
    }
    again = Result.load(tmp_path / f"{name}.json")
    assert again == result
    assert again.page() == (tmp_path / f"{name}.md").read_text()
    assert picture_of(tmp_path / f"{name}.png") == result.digest()
    assert len(result.checks) >= 2
    assert result.paragraph.endswith(".")


def picture_of(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.info["Description"]


def test_the_seed_decides():
    same, again, other = (
        reproduce("lemma1", seed=seed, settings=SMALL["lemma1"]).data for seed in (1, 1, 2)
    )
    assert same == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig9",), "name: got 'fig9'; it must be one of 'assumption1',"),
        (("fig3", "large"), "scale: got 'large'"),
    ],
)
def test_what_there_is_not_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        reproduce(*arguments)


def test_bad_settings_are_said():
    with pytest.raises(ValueError, match=r"settings: fig2 has no \['colour'\]; it has depth, wid"):
        reproduce("fig2", settings={"colour": 1})
    with pytest.raises(ValueError, match="seed: got None"):
        reproduce("fig2", seed=None)


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path):
    asked = []

    def measured(name):
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return len(asked)

    path, key = tmp_path / ".part.json", {"seed": 0, "widths": (1, 2)}
    points = Points(path, key)
    points("a", measured, "a")
    with pytest.raises(KeyboardInterrupt):
        points("b", measured, "b")
    points = Points(path, key)
    assert points.seconds > json.loads(path.read_text())["seconds"] > 0
    assert [points(name, measured, name) for name in "ab"] == [1, 3]
    assert asked == ["a", "b", "b"]
    with pytest.raises(ValueError, match=r"out: .* was begun with other settings"):
        Points(path, {"seed": 1})
    points.end()
    assert not path.exists()


def test_a_killed_table_goes_on_from_its_folder(tmp_path, monkeypatch):
    """What a killed run leaves behind is what the next one begins with."""
    module = experiment("table1")
    trained = []

    def killed(settings, seed, design, folder):
        trained.append(design)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return [10.0 * settings.runs]

    monkeypatch.setattr(module, "_errors", killed)
    with pytest.raises(KeyboardInterrupt):
        reproduce("table1", out=tmp_path, settings=SMALL["table1"])
    first = trained[0]
    assert first in json.loads((tmp_path / ".table1.part.json").read_text())["points"]
    reproduce("table1", out=tmp_path, settings=SMALL["table1"])
    assert trained.count(first) == 1


# Against what is known ---------------------------------------------------------------------------


def test_exact_figures_agree_with_the_paper():
    for name in ("fig6", "table2"):
        differ = [check.quantity for check in reproduce(name).checks if not check.agrees]
        # The paper's duals of ImageNet are wider than the optimum: facts of the table.
        assert all("dual of the search's own choice" in quantity for quantity in differ)
    assert [check.agrees for check in reproduce("fig3").checks] == [True, True, True, False]


def test_slopes_are_found_with_their_error():
    rng, x = np.random.default_rng(0), np.array([1, 2, 4, 8, 16])
    truth, relative = x**-0.5, 0.05
    found = [
        statistics.log_slope(x, truth * (1 + relative * rng.standard_normal(5)), relative * truth)
        for _ in range(2000)
    ]
    slopes, errors = np.array(found).T
    # Of a standard deviation from 2,000 draws: 1.6 %; five of those, and the second order.
    assert abs(slopes.std() / errors.mean() - 1) < 0.1
    assert abs(slopes.mean() + 0.5) < 5 * errors.mean() / np.sqrt(2000) + relative**2


def test_a_standard_deviation_has_its_error():
    rng = np.random.default_rng(0)
    found = np.array(
        [statistics.standard_deviation(rng.exponential(size=4000)) for _ in range(1000)]
    )
    assert abs(found[:, 0].mean() - 1) < 0.01
    assert abs(found[:, 0].std() / found[:, 1].mean() - 1) < 5 / np.sqrt(2 * 1000)


def test_permutations_find_what_chance_would():
    assert statistics.permutation_p([1, 2, 3], [1, 2, 3], seed=0, permutations=6000) == (
        pytest.approx(1 / 3, abs=5 * np.sqrt(2 / 9 / 6000))
    )
    assert statistics.rank_correlation([1, 2, 2, 3], [4, 3, 3, 1]) == -1.0


def test_rows_without_a_figure_of_the_paper_are_not_counted():
    rows = [Check("m", "12", "12", True), Check("error", None, "9 %", None)]
    assert agreement(rows) == "1 of 1 figures agree with the paper's."


def test_a_check_rounds_as_the_paper_prints():
    assert Check.rounded("m", "12", 12.47).agrees
    assert not Check.rounded("rho", "2.45", 2.441).agrees
    assert Check.within("slope", -1.0, -1.05, np.float64(0.02)).agrees is True
    assert not Check.within("slope", -1.0, -1.07, 0.02).agrees


@pytest.mark.parametrize("name", theorem1.ACTIVATIONS)
def test_the_kernel_and_the_step_of_theorem_1_are_the_gradients(name):
    """Against finite differences of the outputs, weight by weight."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 1, 3, 4))
    nets = theorem1.Ensembles(theorem1.ACTIVATIONS[name], x, (2, 2, 5), rng)
    jacobian = []
    for weights in (nets.first, nets.second, nets.last):
        for index in np.ndindex(*weights.shape[1:]):
            at = (slice(None), *index)
            outputs = []
            for away in (1e-6, -2e-6):
                weights[at] += away
                outputs.append(nets._passes()[-1].sum(1) / np.sqrt(2))
            weights[at] += 1e-6
            jacobian.append((outputs[0] - outputs[1]) / 2e-6)
    jacobian = np.stack(jacobian, -1)
    np.testing.assert_allclose(
        nets.kernel(), jacobian @ jacobian.swapaxes(1, 2), rtol=1e-6, atol=1e-8
    )
    # One small step moves the outputs as the kernel says.
    before, targets = nets._passes()[-1].sum(1) / np.sqrt(2), np.ones((2, 1, 3))
    kernel = nets.kernel()
    nets.step(1e-6, targets)
    moved = nets._passes()[-1].sum(1) / np.sqrt(2) - before
    expected = -1e-6 * np.einsum("sab,sb->sa", kernel, before - 1)
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-11)


def test_repetitions_are_trained_as_if_alone():
    """Figure 4's block-diagonal network against its repetitions, one after another."""
    import keras

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)).astype("float32"), rng.integers(0, 3, 40)
    design = Design(2, 4)

    def trained(model):
        model.compile(keras.optimizers.Adam(0.01), fig4.sum_of_losses)
        model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)
        return model.predict(x, verbose=0)

    together = fig4.repeated(design, 3, 6, 3, 3, seed=0)
    start = [weight.numpy() for weight in together.weights]
    expected = trained(together)
    for index in range(3):
        alone = fig4.repeated(design, 1, 6, 3, 3, seed=1)
        alone.set_weights(
            [
                own_part(value, weight, index)
                for value, weight in zip(start, alone.weights, strict=True)
            ]
        )
        np.testing.assert_allclose(trained(alone)[:, 0], expected[:, index], rtol=1e-3, atol=1e-4)


def own_part(value, weight, index):
    """A repetition's part of a variable: along the axis that is three times as long."""
    (axis,) = np.flatnonzero(np.not_equal(value.shape, weight.shape))
    size = weight.shape[axis]
    return np.take(value, range(index * size, (index + 1) * size), axis)


# What is shown -----------------------------------------------------------------------------------


SHOWN = sorted(path.stem for path in DOCS.glob("*.json"))


@pytest.mark.parametrize("stem", SHOWN)
def test_pages_and_pictures_are_of_what_was_measured(stem, tmp_path):
    result = Result.load(DOCS / f"{stem}.json")
    assert result.file == stem
    assert result.page() == (DOCS / f"{stem}.md").read_text()
    assert result.page().splitlines()[2] == f"**{result.verdict}**"
    assert result.verdict.endswith(".")
    assert all(check.agrees is None for check in result.checks if check.paper is None)
    assert picture_of(DOCS / f"{stem}.png") == result.digest()
    result.save_picture(tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 10_000


def test_the_report_is_of_its_pages():
    index = index_of(DOCS)
    assert index == (DOCS / "index.md").read_text()
    assert set(NAMES) <= set(SHOWN)
    assert all(f"({stem}.md)" in index for stem in SHOWN)


def test_a_page_tells_the_command_that_makes_it(tmp_path, capsys):
    from ce_keras.cli import main

    changes = [
        part
        for key, value in SMALL["lemma1"].items()
        for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    folder = ["--out", str(tmp_path)]
    assert main(["reproduce", "lemma1", "--seed", "3", *changes, *folder]) == 0
    page = (tmp_path / "lemma1.md").read_text()
    assert "`ce-keras reproduce lemma1 --scale small --seed 3 --set " in page
    command = next(line for line in page.split("`") if line.startswith("ce-keras reproduce"))
    first = (tmp_path / "lemma1.json").read_text()
    assert main([*shlex.split(command)[1:], *folder]) == 0
    again = json.loads((tmp_path / "lemma1.json").read_text())
    assert again["data"] == json.loads(first)["data"]
    capsys.readouterr()
    assert main(["reproduce", "all", *changes, *folder]) == 2
    assert "settings are of one figure or table" in capsys.readouterr().err
    assert main(["reproduce", "fig3", "--set", "widths", *folder]) == 2
    assert main(["reproduce", "fig3", "--set", "widths=[3]", *folder]) == 2
    assert "settings: fig3 has no ['widths']" in capsys.readouterr().err


def test_the_command_writes_and_says(tmp_path, capsys):
    from ce_keras.cli import main

    assert main(["reproduce", "fig3", "--out", str(tmp_path)]) == 0
    assert "efficiency rho(48)" in capsys.readouterr().out
    assert main(["reproduce", "fig3", "--json", "--out", str(tmp_path)]) == 0
    ((told),) = json.loads(capsys.readouterr().out)
    assert told["checks"][0] == {
        "quantity": "optimal width n",
        "paper": "48",
        "ours": "48",
        "agrees": True,
    }
