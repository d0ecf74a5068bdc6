import json

import numpy as np
import pytest
from brute_force import assert_same_means

from ce_keras import search
from ce_keras.closed_form import first_order_alpha
from ce_keras.geometry import Module, bottleneck, conv, fully_connected
from ce_keras.ntk import fit_alpha, log_moment_ratio, stack_kernels
from ce_keras.ntk.algorithm_1 import tape_kernels


def test_the_papers_alpha():
    fit = fit_alpha(bottleneck(width=256), draws=4000, seed=0)
    assert fit.method == "sampler"
    assert abs(fit.alpha - 1.60) < 2 * fit.alpha_error
    assert fit.alpha_error < 0.1
    # ... which is the slope down to one channel: at the widths in use the variance is larger.
    assert not fit.holds
    assert fit.misfit[1] == pytest.approx(0.55, abs=0.05)


def test_fully_connected_networks_need_no_draws():
    fit = fit_alpha(fully_connected(784, [1000] * 4), ratios=[0.2, 0.5, 1.0])
    assert (fit.method, fit.draws, fit.alpha_error) == ("closed_form", 0, 0.0)
    assert fit.alpha == pytest.approx(first_order_alpha([1.0] * 4), rel=0.01)
    assert fit.holds
    assert "the law holds" in repr(fit)


def test_the_sampler_agrees_with_the_closed_form():
    module = fully_connected(20, [60, 90])
    exact = fit_alpha(module)
    drawn = fit_alpha(module, method="sampler", draws=20_000, seed=0)
    # Twelve points at five standard errors, and the slope.
    assert (abs(drawn.log_ratio - exact.log_ratio) <= 5 * drawn.log_ratio_error).all()
    assert abs(drawn.alpha - exact.alpha) <= 5 * drawn.alpha_error


def test_heavy_tails_are_admitted():
    # Ten layers, ten units: two thousand draws say little, and their own scatter hides it.
    module = fully_connected(10, [500] * 10)
    ratios = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    exact = fit_alpha(module, ratios).alpha
    for seed in range(5):
        fit = fit_alpha(module, ratios, method="sampler", seed=seed)
        assert abs(fit.alpha - exact) <= 3 * fit.alpha_error


def test_errors_cover_the_truth_as_often_as_they_should():
    module = fully_connected(10, [40, 40])
    exact = fit_alpha(module, ratios=[0.25, 0.5, 1.0]).alpha
    fits = [
        fit_alpha(module, [0.25, 0.5, 1.0], draws=500, method="sampler", seed=seed)
        for seed in range(200)
    ]
    inside = np.mean([abs(fit.alpha - exact) <= 2 * fit.alpha_error for fit in fits])
    # 95% +- 1.5% of standard error; five of them below, and errors may be a little cautious.
    assert inside > 0.95 - 5 * 0.0154


def test_an_off_diagonal_entry(rng):
    module = fully_connected(6, [20, 20])
    x1, x2 = rng.normal(size=(2, 6))
    with pytest.raises(ValueError, match="closed form is for a diagonal entry"):
        fit_alpha(module, x1=x1, x2=x2, method="closed_form")
    fit = fit_alpha(module, x1=x1, x2=x2, draws=3000, seed=0)
    assert fit.method == "sampler"
    kernels = stack_kernels(np.stack([x1, x2]), [20, 20], 100_000, seed=5)[:, 0, 1]
    expected, error = log_moment_ratio(kernels)
    assert abs(fit.log_ratio[-1] - expected) <= 5 * np.hypot(error, fit.log_ratio_error[-1])


def test_algorithm_1_as_printed_draws_the_same_kernels(rng):
    stack = bottleneck(6, width=3).stack(3)
    x = rng.normal(size=(2, 9, 6))
    printed = tape_kernels(stack, x, 150, np.random.default_rng(0))
    sampled = stack_kernels(x, stack.widths, 20_000, seed=0)[:, 0, 1]
    assert_same_means(printed, sampled)
    assert_same_means(printed**2, sampled**2)


def test_a_fit_and_its_table_go_into_a_search():
    module = bottleneck(width=128)
    fit = fit_alpha(bottleneck(width=256), draws=500, seed=0)
    by_law = search(module, "dual", alpha=fit)
    assert by_law.alpha == fit.alpha
    assert "±" in by_law.law
    measured = fit_alpha(module, ratios=[1 / 128, 1 / 16, 1 / 4, 1.0], draws=2000, seed=0)
    assert search(module, "dual", law=measured.table()).law == "measured law"


def test_a_fit_goes_on_where_it_stopped(tmp_path, monkeypatch):
    module, path = bottleneck(8, width=32), tmp_path / "fit.json"
    whole = fit_alpha(module, draws=200, seed=3)

    calls = []

    def interrupted(*arguments, **options):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(arguments)
        return stack_kernels(*arguments, **options)

    monkeypatch.setattr("ce_keras.ntk.alpha.stack_kernels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_alpha(module, draws=200, seed=3, checkpoint=path)
    assert len(json.loads(path.read_text())["points"]) == 4
    calls.clear()
    monkeypatch.setattr(
        "ce_keras.ntk.alpha.stack_kernels",
        lambda *arguments, **options: calls.append(1) or stack_kernels(*arguments, **options),
    )
    resumed = fit_alpha(module, draws=200, seed=3, checkpoint=path)
    assert len(calls) == len(whole.width) - 4
    np.testing.assert_array_equal(resumed.log_ratio, whole.log_ratio)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of another fit"):
        fit_alpha(module, draws=300, seed=3, checkpoint=path)


def test_the_same_seed_gives_the_same_fit():
    fits = [fit_alpha(bottleneck(width=32), draws=100, seed=seed).alpha for seed in (1, 1, 2)]
    assert fits[0] == fits[1] != fits[2]


def test_the_picture():
    fit = fit_alpha(bottleneck(width=32), draws=100, seed=0)
    ax = fit.plot()
    assert f"{fit.alpha:.3f}" in ax.get_legend().get_texts()[0].get_text()
    line = ax.lines[-1].get_xydata()
    assert (line[1] - line[0])[1] / line[1][0] == pytest.approx(fit.alpha)
    ax.figure.clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": "bottleneck"}, "module: got 'bottleneck'"),
        ({"module": Module("mine", 8, lambda n: [conv(3, n)])}, "'mine' is not described"),
        ({"ratios": [0.5, 1.5]}, "ratios: got 1.5"),
        ({"ratios": [1.0]}, "two widths or more"),
        ({"draws": 0}, "draws: got 0"),
        ({"method": "magic"}, "method: got 'magic'"),
        ({"method": "closed_form"}, "closed form is for"),
        ({"x1": np.ones(3)}, "x1: got shape"),
        ({"x2": np.ones((9, 256))}, "x1: needed too"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_alpha(**{"module": bottleneck(width=16), **arguments})
