"""Keras models as baselines of a search, of a tuner and of measured budgets."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import ce_keras
from ce_keras import search
from ce_keras.rewrite import baselines_of, collegialize, inspect
from ce_keras.rewrite.baselines import activations
from ce_keras.rewrite.timing import grid, measure_table


@pytest.fixture(scope="module")
def baseline():
    return ce_keras.zoo.resnext11(mode="baseline")


@pytest.fixture(scope="module")
def two_families():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(32, 1, activation="relu", name="a")(image)
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="b")(x)
    x = layers.Conv2D(16, 1, name="c")(x)
    x = layers.GlobalAveragePooling2D()(x)
    for name in ("d", "e"):
        x = layers.Dense(64, "relu", name=name)(x)
    return keras.Model(image, layers.Dense(10, name="f")(x))


def test_a_model_is_the_baseline_that_its_name_is(baseline, tmp_path):
    options = {"alpha": "closed_form", "mode": "dual", "widths": [8]}
    named = search("resnext11", **options)
    baseline.save(tmp_path / "model.keras")
    candidate = inspect(baseline).candidates[-1]
    for model in (baseline, tmp_path / "model.keras", str(tmp_path / "model.keras"), candidate):
        ours = search(model, **options)
        assert ours.design == named.design
        assert (ours.params, ours.flops) == (named.params, named.flops)
        assert ours.baseline_params == baseline.count_params() - sum(
            weight.shape[0] for weight in baseline.non_trainable_weights
        )


def test_several_families_have_a_solution_each(two_families):
    solutions = search(two_families)
    assert [name.split()[0] for name in solutions] == ["bottleneck", "dense"]
    report = inspect(two_families)
    assert [each.design for each in solutions.values()] == [
        each.design for each in report.decisions
    ]
    assert search(two_families, family="dense*").design == report.decisions[1].design
    assert search(two_families, family="a to c").design == report.decisions[0].design
    with pytest.raises(ValueError, match=r"family: .conv.. fits none; the model has 'bottleneck"):
        search(two_families, family="conv*")


def test_what_is_no_baseline_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"baseline: nothing in .* can be ensembled"):
        search(keras.Sequential([keras.Input((4,)), layers.Dense(3, name="only")], name="flat"))
    with pytest.raises(ValueError, match=r"baseline: got <object.*must be a name"):
        search(object())
    with pytest.raises(ValueError, match="there is no file"):
        search(tmp_path / "no.keras")


def test_half_the_size(baseline):
    report = collegialize(baseline, target=0.5).report
    path = report.decisions[0].path_params
    assert abs(report.after.params - report.before.params / 2) <= path / 2
    count = report.before.params // 3
    report = inspect(baseline, target_params=count)
    assert abs(report.after.params - count) <= report.decisions[0].path_params / 2
    with pytest.raises(ValueError, match=r"target: got 0.5, beside a design"):
        inspect(baseline, target=0.5, design="4x8d")


def test_the_size_of_a_model_with_several_families_is_that_of_the_whole(two_families):
    whole = two_families.count_params()
    report = collegialize(two_families, target=0.6).report
    paths = sum(each.path_params for each in report.decisions)
    assert len(report.decisions) == 2
    assert abs(report.after.params - 0.6 * whole) <= paths / 2
    solutions = search(two_families, target=0.6)
    assert [each.design for each in solutions.values()] == [
        each.design for each in report.decisions
    ]
    assert inspect(two_families, target_params=round(0.6 * whole)).after == report.after
    alone = search(two_families, family="dense*", target=0.8)
    assert abs(alone.params - 0.8 * whole) < abs(alone.baseline_params - 0.8 * whole)
    with pytest.raises(ValueError, match=r"target: no design .* smallest"):
        inspect(two_families, target=1e-4)


def test_a_given_design_times_nothing(two_families, monkeypatch):
    def measured(*_):
        raise AssertionError("blocks were timed")

    monkeypatch.setattr("ce_keras.rewrite.timing.measure_table", measured)
    monkeypatch.setenv("CE_KERAS_CACHE", "no such folder")
    assert inspect(two_families, budget="latency", design="2x4d").candidates


def test_families_of_one_shape_of_name_have_a_solution_each():
    image = keras.Input((8, 8, 3))
    x = image
    for number, (first, second) in enumerate([(32, 16), (16, 32)]):
        x = layers.Conv2D(first, 1, activation="relu", name=f"{number}_a")(x)
        x = layers.Conv2D(second, 3, padding="same", activation="relu", name=f"{number}_b")(x)
        x = layers.Conv2D(8, 1, name=f"{number}_c")(x)
    assert len(search(keras.Model(image, x))) == 2


def test_memory_is_counted_as_the_rebuilt_model_has_it(baseline):
    (family,) = baselines_of(baseline)
    cost = family.budget("memory", ce_keras.latency.Timing(batch=8))
    for design in ("1x64d", "7x7d", "3x20d"):
        built = baseline if design == "1x64d" else collegialize(baseline, design=design)
        m, n = ce_keras.Design.parse(design)
        expected = 8 * 4 * activations(built)
        assert float(cost.of(m, np.array(n))) == expected


def test_latency_of_every_block_is_measured_and_added_up(two_families, monkeypatch, tmp_path):
    monkeypatch.setenv("CE_KERAS_CACHE", str(tmp_path))
    _, dense = baselines_of(two_families)
    table = measure_table(two_families, dense.family, ce_keras.latency.Timing(batch=4))
    (block,) = table.blocks
    assert block.number == 1
    assert [tuple(design) for design in block.designs] == grid(dense.family)
    assert block.designs[-1] == [1, 64]
    assert min(map(min, block.seconds)) > 0
    solution = search(two_families, "dual", family="dense*", budget="latency", batch=4)
    assert solution.measured[0].name == "training step, batch 4"
    assert len(list(tmp_path.iterdir())) == 1
    report = inspect(two_families, "dual", only="d", budget="latency", batch=4)
    decided = [each.design for each in report.decisions] or [(1, 64)]
    assert decided == [solution.design], "the times are those of the file"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_block_is_timed_as_inside_its_network(two_families, monkeypatch):
    """Its backward pass goes on to what is before it; a step of nothing is not in its time."""
    from ce_keras.rewrite import timing

    _, dense = baselines_of(two_families)
    (chain,) = dense.family.chains
    x = chain.linear[0].layer.input
    block = timing._as_inside_a_model(timing._paths(chain, dense.family, (2, 8)), x)
    assert block.output_shape == (None,)
    (shift,) = [each for each in block.weights if each.name == "shift"]
    timing.step_of(block, 4)()
    assert float(shift.value) != 0
    designs = [ce_keras.Design(1, 1), ce_keras.Design(1, 64)]
    times = itertools.cycle([2.0, 5.0, 7.0])  # Of nothing, and of the designs.
    monkeypatch.setattr(timing, "seconds_of", lambda _: next(times))
    first, second = timing._block_seconds(chain, dense.family, designs, ce_keras.latency.Timing(2))
    assert {*first} == {3.0}
    assert {*second} == {5.0}


def test_times_of_different_models_are_kept_apart(monkeypatch, tmp_path):
    """A model inside, a stride or a kernel makes another model; names do not."""
    monkeypatch.setenv("CE_KERAS_CACHE", str(tmp_path))

    def nested(kernel, strides=1, prefix=""):
        image = keras.Input((8, 8, 16))
        x = layers.Conv2D(8, 1, activation="relu", name=f"{prefix}a")(image)
        x = layers.Conv2D(8, kernel, strides, padding="same", name=f"{prefix}b")(x)
        inner = keras.Model(image, layers.Conv2D(16, 1, name=f"{prefix}c")(x))
        outer = keras.Input((8, 8, 16))
        return keras.Model(outer, layers.GlobalAveragePooling2D()(inner(outer)))

    monkeypatch.setattr(
        "ce_keras.rewrite.timing.measure_table",
        lambda model, family, timing: ce_keras.latency.Table(
            [1.0], [ce_keras.latency.Block(1, [[1, 8]], [[0.5]])]
        ),
    )
    for model in (nested(3), nested(5), nested(3, 2), nested(3, prefix="another_")):
        search(model, budget="latency")
    assert len(list(tmp_path.iterdir())) == 3
