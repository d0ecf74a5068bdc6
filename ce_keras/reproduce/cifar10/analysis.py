"""Statistics of the trainings: rank correlations of the error, and differences between designs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ce_keras.reproduce.cifar10.designs import CONTRASTS, predictors
from ce_keras.reproduce.statistics import permutation_p, rank_correlation

_TEST_IMAGES = 10_000

# Rank correlations are of so many designs at least.
_DESIGNS = 5

#: A difference is called one beyond so many standard errors.
ERRORS = 2.0


class Difference(NamedTuple):
    """Difference between two designs in points of test error, and its standard error."""

    value: float
    error: float
    seeds: int

    @property
    def significant(self) -> bool:
        """Return whether it is more than two standard errors from 0."""
        return abs(self.value) > ERRORS * self.error

    def __str__(self) -> str:
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"{self.value:+.2f} ± {self.error:.2f} ({seeds})"


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Return the mean of a - b, paired by seed, with its standard error over the seeds.

    For one seed the standard error is that of two fractions of independent test images: it does
    not contain the variation between trainings.
    """
    pairs = a - b
    if len(pairs) > 1:
        error = pairs.std(ddof=1) / np.sqrt(len(pairs))
    else:
        fractions = np.array([a[0], b[0]]) / 100
        error = 100 * np.sqrt((fractions * (1 - fractions)).sum() / _TEST_IMAGES)
    return Difference(float(pairs.mean()), float(error), len(pairs))


def summarize(data: dict[str, Any]) -> dict[str, Any]:
    """Return, for each regime, errors by design, rank correlations and contrasts."""
    regimes = dict.fromkeys(run["regime"] for run in data["runs"])
    summary = {}
    for regime in regimes:
        errors = by_design(data, regime, "test_error")
        summary[regime] = {
            "errors": errors,
            "train": by_design(data, regime, "train_error"),
            "correlations": (
                _correlations(errors, data.get("times", {})) if len(errors) >= _DESIGNS else {}
            ),
            "contrasts": {
                (a, b): difference(errors[a], errors[b])
                for _, a, b, _ in CONTRASTS
                if a in errors and b in errors
            },
        }
    return summary


def by_design(data: dict[str, Any], regime: str, quantity: str) -> dict[str, np.ndarray]:
    """Return a quantity of every design: an array over its seeds, in their order."""
    rows: dict[str, list[float]] = {}
    for run in sorted(data["runs"], key=lambda run: run["seed"]):
        if run["regime"] == regime:
            rows.setdefault(run["design"], []).append(run[quantity])
    return {design: np.array(values) for design, values in rows.items()}


def _correlations(
    errors: dict[str, np.ndarray], times: dict[str, dict[str, float]], draws: int = 2_000
) -> dict[str, Any]:
    """Return the rank correlation of each predictor with the mean error.

    Each comes with a 95 % bootstrap interval (designs, and seeds of each, are drawn again) and
    the p-value of a permutation test.
    """
    timed = errors.keys() <= times.keys()
    known = [predictors(design) | (times[design] if timed else {}) for design in errors]
    means = np.array([values.mean() for values in errors.values()])
    rng = np.random.default_rng(0)
    resampled = np.array(
        [rng.choice(values, (draws, len(values))).mean(1) for values in errors.values()]
    )
    picks = rng.integers(0, len(means), (draws, len(means)))
    # In a sample of fewer than three different designs ranks are given, or undefined.
    picks = picks[[len(set(pick)) > 2 for pick in picks]]
    found = {}
    for name in known[0]:
        values = np.array([each[name] for each in known])
        with np.errstate(invalid="ignore"):  # Equal values have no ranks.
            drawn = rank_correlation(
                values[picks], resampled[picks, np.arange(len(picks))[:, None]]
            )
        found[name] = {
            "value": float(rank_correlation(values, means)),
            "interval": [float(end) for end in np.nanquantile(drawn, [0.025, 0.975])],
            "p": permutation_p(values, means, seed=0),
        }
    return found
