"""Costs of a user's own, against all designs counted."""

import numpy as np
import pytest

from ce_keras import geometry, law
from ce_keras.optimum import search


@pytest.mark.parametrize(
    "cost",
    [
        lambda m, n: -(-m * n // 64) * 64 * 10 + 100,  # Padded channels.
        lambda m, n: -(-m // 4) * (512 * n + 9 * n * n),
    ],
)
def test_a_cost_with_steps_affords_the_last_path_of_the_step(cost):
    baseline = geometry.baseline("resnext29")
    most = cost(1, baseline.width)
    found = search("resnext29", budget=cost, hard_budget=True, tolerance=0)

    def variance(width):
        m = max((m for m in range(1, 3000) if cost(m, width) <= most), default=0)
        path = law.ExponentialLaw(baseline.module, 1.6).path_variance(np.array(float(width)))
        return float(path) / m if m else np.inf

    assert found.variance == pytest.approx(min(map(variance, range(1, baseline.width + 1))))
    assert cost(*found.design) <= most
