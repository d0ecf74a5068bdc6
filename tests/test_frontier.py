"""The best design of every size, against all designs."""

import itertools
import json

import numpy as np

from ce_keras import geometry, law
from ce_keras.geometry import bottleneck
from ce_keras.optimum import search


def test_the_frontier_has_the_best_design_at_every_size():
    solution = search("resnext29", target=0.5)
    frontier = solution.frontier()
    best, narrower = frontier.best, frontier.narrower
    assert (np.diff(best.cost) > 0).all()
    assert (np.diff(best.variance) < 0).all()
    assert [design.cardinality for design in narrower.design] == [1] * 128
    marked = {name: str(group.design[0]) for name, group in frontier.marked.items()}
    assert marked == {
        "baseline": "1x128d",
        "primal": "37x10d",
        "dual": "10x10d",
        "0.5 of it": "18x10d",
    }
    block = bottleneck(width=128)
    network = geometry.baseline("resnext29")
    base = law.variance(1.6, block.inverse_fan_in(128))
    for m, n in itertools.product((1, 2, 5, 20), (3, 8, 30, 128)):
        if network.params(m, n) <= best.cost[-1]:
            variance = law.variance(1.6, block.inverse_fan_in(n), m) / base
            larger = best.cost >= network.params(m, n)
            assert best.variance[larger][0] <= variance * (1 + 1e-9)
    content = json.loads(json.dumps(frontier.to_dict(), allow_nan=False))
    assert content["dual"]["design"] == ["10x10d"]
