"""Latency as a cost: predictions from a table of times that are known exactly."""

import json
import logging

import keras
import numpy as np
import pytest

from ce_keras import search
from ce_keras.algorithm2 import solve
from ce_keras.geometry import baseline
from ce_keras.latency import (
    Block,
    LatencyCost,
    Table,
    Timing,
    device_and_versions,
    known_table,
)
from ce_keras.optimum import times_key

WIDTH = 128


def seconds(m, n, work):
    """Return the time of a block: a part for all, and one for each path that grows with n."""
    return 1e-3 + work * m * n**1.5


def table(noise=0.0):
    rng = np.random.default_rng(0)
    designs = [[400, 4], [150, 8], [40, 8], [20, 32], [1, WIDTH]]

    def times(value):
        return (value * np.exp(noise * rng.standard_normal(7))).tolist()

    blocks = [
        Block(number, designs, [times(seconds(m, n, work)) for m, n in designs])
        for number, work in ((3, 1e-6), (2, 4e-6))
    ]
    whole = 0.02 + sum(
        block.number * seconds(1, WIDTH, work)
        for block, work in zip(blocks, (1e-6, 4e-6), strict=True)
    )
    return Table(times(whole), blocks)


def exact(m, n):
    return 0.02 + 3 * seconds(m, n, 1e-6) + 2 * seconds(m, n, 4e-6)


@pytest.mark.parametrize("design", [(1, 128), (10, 10), (33, 17), (300, 2), (7, 60)])
def test_times_between_and_below_what_was_measured(design):
    cost = LatencyCost(Timing(), table(), WIDTH)
    assert cost.of(*design) == pytest.approx(exact(*design), rel=1e-6)
    (line,) = cost.measured(design)
    assert line.value == pytest.approx(1e3 * exact(*design), rel=1e-6)
    assert line.baseline == pytest.approx(1e3 * exact(1, WIDTH))


def test_channels_that_are_no_multiple_of_8_take_longer():
    """And one path alone has times of its own."""

    def measured(m, n):
        slower = 1.7 if m * n % 8 else 1.0
        return 1e-3 + 1e-6 * m * n**1.2 * (0.8 if m == 1 else slower)

    designs = [(136, 3), (48, 8), (21, 16), (3, 64), (12, 8), (33, 11), (1, 64), (1, WIDTH)]
    block = Block(1, designs, [[measured(*design)] for design in designs])
    cost = LatencyCost(Timing(), Table([0.01], [block]), WIDTH)
    rest = 0.01 - measured(1, WIDTH)
    for design in [(32, 11), (35, 11), (16, 27), (15, 27), (30, 12), (1, 20), (1, 90)]:
        assert cost.of(*design) == pytest.approx(rest + measured(*design), rel=1e-6), design
    affordable = cost.affordable(np.array([11, 16]), 0.9)
    slow, fast = affordable * np.array([11, 16]) ** 1.2
    assert fast == pytest.approx(1.7 * slow)


def test_one_path_is_affordable_where_it_alone_is():
    designs = [(40, 8), (10, 8), (9, 16), (1, 64), (1, WIDTH)]
    block = Block(1, designs, [[1.0], [0.25], [0.5], [0.3], [0.8]])
    cost = LatencyCost(Timing(), Table([1.0], [block]), WIDTH)
    n = np.array([64, WIDTH])
    assert (cost.affordable(n, 1.0) >= 1).all()
    assert (cost.affordable(n, 0.4) < 1).all()


def test_affordable_inverts_the_cost():
    cost = LatencyCost(Timing(), table(), WIDTH)
    n = np.array([3, 10, 64])
    for share in (0.7, 1.0):
        m = cost.affordable(n, share)
        np.testing.assert_allclose(cost.of(m, n), share * cost.baseline)


def test_the_spread_of_the_times_widens_the_band():
    quiet, noisy = (LatencyCost(Timing(), table(noise), WIDTH) for noise in (0.0, 0.5))
    m, n = np.array([10.0, 100.0]), np.array([10, 8])
    assert (quiet.log_error(m, n) == 0).all()
    assert (noisy.log_error(m, n) > 0).all()
    network = baseline("resnext29")
    near = [len(solve(network, budget=cost).near_optimal()) for cost in (quiet, noisy)]
    assert near[0] < near[1]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_a_frontier_marks_the_designs_of_both_searches(noise, hard):
    cost = LatencyCost(Timing(), table(noise), WIDTH)
    network = baseline("resnext29")
    solutions = {
        mode: solve(network, mode, budget=cost, hard_budget=hard and mode == "primal")
        for mode in ("primal", "dual")
    }
    for mode, solution in solutions.items():
        marked = solution.frontier().marked
        assert marked[mode].design[0] == solution.design
        if not hard:
            assert {name: marked[name].design[0] for name in solutions} == {
                name: each.design for name, each in solutions.items()
            }


def test_no_design_is_slower_than_a_hard_budget():
    cost = LatencyCost(Timing(batch=8, phase="infer"), table(), WIDTH)
    solution = solve(baseline("resnext29"), budget=cost, hard_budget=True)
    assert exact(*solution.design) <= exact(1, WIDTH)
    assert "inference, batch 8" in repr(solution)
    assert json.loads(json.dumps(solution.to_dict()))["measured"][0]["unit"] == "ms"


def test_times_are_measured_once_and_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CE_KERAS_CACHE", str(tmp_path / "times"))
    calls = []

    def measure():
        calls.append(1)
        return table()

    first = known_table({"network": "a"}, Timing(), measure)
    again = known_table({"network": "a"}, Timing(), measure)
    assert len(calls) == 1
    assert again == Table(list(first.whole), [Block(*block) for block in first.blocks])
    known_table({"network": "b"}, Timing(), measure)
    known_table({"network": "a"}, Timing(batch=8), measure)
    known_table({"network": "a"}, Timing(remeasure=True), measure)
    assert len(calls) == 4
    for path in (tmp_path / "times").iterdir():
        path.write_text("{")
    with caplog.at_level(logging.WARNING, "ce_keras"):
        known_table({"network": "a"}, Timing(), measure)
    assert len(calls) == 5
    assert "measured again" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CE_KERAS_CACHE", str(tmp_path / "file" / "times"))
    with caplog.at_level(logging.WARNING, "ce_keras"):
        assert known_table({"network": "a"}, Timing(), table).whole
    assert "not kept" in caplog.text


def test_what_cannot_be_built_has_no_latency():
    with pytest.raises(ValueError, match=r"budget: got .latency.; it needs a network that can be"):
        search("figure3", budget="latency")
    with pytest.raises(ValueError, match=r"phase: got .test."):
        search("resnext29", budget="latency", phase="test")


def test_times_are_kept_by_all_that_they_depend_on(monkeypatch):
    network = baseline("resnext11")
    plain = times_key(network, None, None), device_and_versions()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert times_key(network, None, None) != plain[0]
        assert times_key(network, None, None) == times_key(network, None, "mixed_bfloat16")
    finally:
        keras.config.set_dtype_policy("float32")
    assert times_key(network, None, None) == plain[0]
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    assert device_and_versions() != plain[1]
