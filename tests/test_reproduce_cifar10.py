"""The CIFAR-10 experiment: its statistics on made-up errors, and its trainings on a few images."""

import numpy as np
import pytest

from ce_keras.reproduce import Result, reproduce
from ce_keras.reproduce.cifar10 import analysis, designs, trainings
from ce_keras.zoo import resnext11c


def result(errors):
    """Return a result with one made-up test error for each design and seed."""
    runs = [
        {"regime": "all images", "design": design, "seed": seed, "test_error": error}
        | {"train_error": 1.0, "train_loss": 0.1}
        for design, values in errors.items()
        for seed, error in enumerate(values)
    ]
    settings = trainings.SCALES["full"]._asdict()
    return Result("cifar10", "full", 0, 1.0, {"settings": settings, "runs": runs})


def rows(result):
    return {check.quantity: check for check in result.checks}


def test_an_error_that_grows_with_the_exact_variance_is_found_to():
    exact = {
        design: designs.predictors(design)["exact variance"]
        for design in trainings.SCALES["full"].designs
    }
    made_up = result({design: [10 + 50 * value] for design, value in exact.items()})
    check = rows(made_up)["all images: rank correlation of error with exact variance"]
    assert check.agrees
    assert check.ours.startswith("1.00 (1.00 to 1.00")
    assert "follows the exact variance (rank correlation 1.00 over 12 designs" in made_up.verdict
    assert "training errors 1.0 %" in made_up.verdict


def test_an_error_that_has_nothing_to_do_with_it_is_found_not_to(rng):
    noise = result({design: [rng.normal(20)] for design in trainings.SCALES["full"].designs[:5]})
    check = rows(noise)["all images: rank correlation of error with exact variance"]
    assert check.agrees is None
    assert "it does not" in noise.verdict


def test_differences_are_paired_by_seed():
    found = analysis.difference(np.array([10.0, 14.0, 12.0]), np.array([11.0, 15.1, 12.9]))
    assert found.value == pytest.approx(-1)
    assert found.error == pytest.approx(0.1 / np.sqrt(3))
    assert found.significant
    assert str(found) == "-1.00 ± 0.06 (3 seeds)"


def test_the_error_of_one_seed_is_that_of_the_test_images():
    found = analysis.difference(np.array([50.0]), np.array([20.0]))
    assert found.error == pytest.approx(100 * np.sqrt((0.25 + 0.16) / 10_000))


def test_a_dual_agrees_if_it_is_level_and_a_primal_if_it_is_better():
    made_up = result({"1x64d": [10, 12], "17x10d": [9, 11.1], "11x7d": [10.1, 11.8]})
    found = {
        key.split("error of ")[1].split(" (")[0]: row
        for key, row in rows(made_up).items()
        if "minus" in key
    }
    assert found["17x10d minus 1x64d"].agrees is True
    assert found["11x7d minus 1x64d"].agrees is True
    worse = result({"1x64d": [10, 12], "17x10d": [11, 13.1], "11x7d": [11, 13.1]})
    assert [row.agrees for key, row in rows(worse).items() if "minus" in key] == [False, False]


def test_predictors_are_those_of_the_network_that_is_built():
    model = resnext11c(cardinality=11, width=7)
    trained = sum(np.prod(weight.shape) for weight in model.trainable_weights)
    assert designs.predictors("11x7d")["parameters"] == trained == 597_093
    baseline = resnext11c(mode="baseline")
    assert sum(np.prod(weight.shape) for weight in baseline.trainable_weights) == 1_216_586


@pytest.mark.slow
def test_a_stopped_queue_resumes_with_the_trainings_that_are_missing(
    tmp_path, colour_images, monkeypatch
):
    settings = {"source": str(colour_images), "designs": ["1x2d", "2x1d"], "seeds": 1}
    settings |= {"epochs": 1, "few": 20, "few_epochs": 1}
    train, trained = trainings._train, []

    def stopped(*arguments):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(trainings, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        reproduce("cifar10", "full", tmp_path / "out", settings=settings)
    monkeypatch.undo()
    loaded = []
    load = trainings._dataset
    monkeypatch.setattr(trainings, "_dataset", lambda recipe: loaded.append(1) or load(recipe))
    found = reproduce("cifar10", "full", tmp_path / "out", settings=settings)
    runs = found.data["runs"]
    assert [run["design"] for run in runs] == ["1x2d", "2x1d"] * 2
    assert len(loaded) == 1, "the images of the finished regime are not loaded again"
    assert all(0 <= run[error] <= 100 for run in runs for error in ("train_error", "test_error"))
    assert (tmp_path / "out/cifar10.md").exists()
