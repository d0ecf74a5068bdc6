import functools
import json

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras import search
from ce_keras.geometry import (
    Module,
    Stack,
    bottleneck,
    conv,
    dense,
    first_order_alpha,
    fully_connected,
)
from ce_keras.ntk import fit_alpha, log_moment_ratio, stack_kernels
from ce_keras.variance.law import ClosedFormLaw


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


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_all_methods_agree(parameterization):
    module = fully_connected(7, [20, 30])
    how = {"ratios": [0.2, 1.0], "parameterization": parameterization, "seed": 0}
    exact = fit_alpha(module, **how)
    assert exact.method == "closed_form"
    for method, draws in {"sampler": 20_000, "ensemble": 5_000, "tape": 50}.items():
        fit = fit_alpha(module, draws=draws, method=method, **how)
        assert fit.method == method
        assert (abs(fit.log_ratio - exact.log_ratio) <= 5 * fit.log_ratio_error).all()


def test_the_parameterisation_matters():
    module = fully_connected(7, [20, 30])
    fits = [fit_alpha(module, parameterization=which) for which in ("ntk", "standard")]
    assert abs(fits[0].alpha - fits[1].alpha) > 0.05
    assert "standard parameterisation" in repr(fits[1])


def block(width):
    """The bottleneck block, as one writes it in Keras."""
    image = keras.Input((3, 3, 16))
    normal = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")
    options = {"activation": "relu", "padding": "same", "kernel_initializer": normal}
    x = layers.Conv2D(width, 3, **options)(layers.Conv2D(width, 1, **options)(image))
    last = layers.Conv2D(16, 1, kernel_initializer=keras.initializers.RandomNormal(0, width**-0.5))
    return keras.Model(image, layers.Add()([image, last(x)]))


def test_a_keras_function_is_fitted_as_the_module_it_is(rng):
    ratios, image = [0.25, 0.5, 1.0], rng.normal(size=(3, 3, 16))
    fit = fit_alpha(block, ratios, 5000, x1=image, width=16, seed=0)
    assert (fit.method, fit.module) == ("ensemble", "block")
    module = bottleneck(16, width=16)
    known = fit_alpha(module, ratios, 20_000, x1=image.reshape(9, 16), seed=1)
    np.testing.assert_allclose(fit.inverse_fan_in, known.inverse_fan_in)
    errors = np.hypot(fit.log_ratio_error, known.log_ratio_error)
    assert (abs(fit.log_ratio - known.log_ratio) <= 5 * errors).all()


def test_a_keras_function_has_a_readout():
    readouts = [None, lambda y: 2 * y[:, 1, 1, 0], lambda y: keras.ops.mean(y, axis=(1, 2, 3))]
    one, twice, mean = (
        fit_alpha(block, [0.25, 1.0], 500, width=16, readout=readout, seed=0).log_ratio
        for readout in readouts
    )
    np.testing.assert_allclose(one, twice, rtol=1e-4)
    assert (abs(one - mean) > 1e-3).all()


def test_a_fit_of_the_wider_paths_alone():
    module = fully_connected(10, [100] * 3)
    fit = fit_alpha(module)
    wide = fit.from_width(50)
    again = fit_alpha(module, (wide.width / 100).tolist())
    assert wide.width.min() >= 50
    assert wide.alpha == again.alpha > fit.alpha
    with pytest.raises(ValueError, match="width: got 100; a line needs two widths or more"):
        fit.from_width(100)


def normalised(width):
    stack = [layers.Dense(width), layers.LayerNormalization(), layers.Dense(1)]
    return keras.Sequential([keras.Input((4,)), *stack])


def test_a_width_that_nothing_passes_is_refused():
    with pytest.raises(ValueError, match="ratios: at width 1 the kernel is 0"):
        fit_alpha(normalised, [0.1, 1.0], 20, width=10)


def softened(width):
    return keras.Sequential([keras.Input((4,)), layers.Dense(width, "softmax"), layers.Dense(1)])


def test_what_cannot_be_grouped_is_drawn_one_by_one():
    assert fit_alpha(softened, [0.5, 1.0], 5, width=8, seed=0).method == "tape"
    with pytest.raises(ValueError, match=r"'ensemble' cannot be.*softmax.*use 'tape'"):
        fit_alpha(softened, [0.5, 1.0], 5, width=8, method="ensemble")


def perceptron(activation):
    def build(width):
        stack = [layers.Dense(width, activation), layers.Dense(1)]
        return keras.Sequential([keras.Input((4,)), *stack])

    return build


def test_a_checkpoint_knows_its_networks(tmp_path):
    path = tmp_path / "fit.json"
    how = {"ratios": [0.5, 1.0], "draws": 20, "width": 8, "seed": 0, "checkpoint": path}
    first = fit_alpha(perceptron("relu"), **how)
    assert fit_alpha(perceptron("relu"), **how).alpha == first.alpha
    for other in (
        {"module": perceptron("tanh")},
        {"readout": lambda y: keras.ops.square(y[:, 0])},
        {"readout": functools.partial(lambda scale, y: scale * y[:, 0], 2.0)},
    ):
        with pytest.raises(ValueError, match="with another fit"):
            fit_alpha(**{"module": perceptron("relu"), **how, **other})


def test_the_users_model_is_left_alone(tmp_path):
    models = {n: perceptron("relu")(n) for n in (4, 8)}
    before = [weight.copy() for weight in models[8].get_weights()]
    for method in ("ensemble", "tape"):
        how = {"method": method, "seed": 0, "checkpoint": tmp_path / f"{method}.json"}
        fit_alpha(models.__getitem__, [0.5, 1.0], 5, width=8, **how)
    for weight, other in zip(models[8].get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, other)


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

    monkeypatch.setattr("ce_keras.variance.fit.stack_kernels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_alpha(module, draws=200, seed=3, checkpoint=path)
    assert len(json.loads(path.read_text())["points"]) == 4
    calls.clear()
    monkeypatch.setattr(
        "ce_keras.variance.fit.stack_kernels",
        lambda *arguments, **options: calls.append(1) or stack_kernels(*arguments, **options),
    )
    resumed = fit_alpha(module, draws=200, seed=3, checkpoint=path)
    assert len(calls) == len(whole.width) - 4
    np.testing.assert_array_equal(resumed.log_ratio, whole.log_ratio)
    with pytest.raises(ValueError, match=r"checkpoint: .* was begun with another fit"):
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


def two_inputs(width):
    one, two = keras.Input((width,)), keras.Input((width,))
    return keras.Model([one, two], layers.Add()([one, two]))


def any_size(width):
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Conv2D(2, 1)(layers.Conv2D(width, 3)(image)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": "bottleneck"}, "module: got 'bottleneck'"),
        ({"module": Module("mine", 8, lambda n: [conv(3, n)])}, "'mine' is not described"),
        ({"ratios": [0.5, 1.5]}, "ratios: got 1.5"),
        ({"ratios": [1.0]}, "two widths or more"),
        ({"draws": 0}, "draws: got 0"),
        ({"draws": 1}, "draws: got 1; a variance needs 2"),
        ({"ratios": ["a", "b"]}, "ratios: got"),
        ({"readout": 3}, "readout: got 3"),
        ({"checkpoint": "fit.json"}, "seed: needed with a checkpoint"),
        ({"x1": np.full((9, 256), np.nan)}, "x1: 2304 of its 2304 numbers"),
        ({"method": "magic"}, "method: got 'magic'"),
        ({"method": "closed_form"}, "closed form is for"),
        ({"method": "sampler", "module": block, "width": 8}, "'sampler' is for the modules"),
        ({"module": block}, "width: needed with a function"),
        ({"width": 3}, "has its own: 16"),
        ({"module": lambda n: n, "width": 3}, "gave 3; it must be a Keras model"),
        ({"module": lambda _: block(3), "width": 3}, "S is 0.* at every width"),
        ({"module": two_inputs, "width": 3}, "of one input and one output"),
        ({"module": block, "width": 3, "x1": np.ones((3, 3, 4))}, "x1: got shape"),
        ({"module": any_size, "width": 3}, "x1: needed, since"),
        ({"parameterization": "mean field"}, "parameterization: got 'mean field'"),
        ({"readout": np.sum}, "readout: is for Keras models"),
        ({"x1": np.ones(3)}, "x1: got shape"),
        ({"x2": np.ones((9, 256))}, "x1: needed too"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_alpha(**{"module": bottleneck(width=16), **arguments})


def homogeneous(activation, layers=2):
    return Module(
        "homogeneous",
        24,
        lambda n: [dense(10, n, in_law=False), *[dense(n, n)] * (layers - 1), dense(n, 1)],
        2.0,
        lambda n: Stack(10, 1, [n] * layers, activation),
    )


@pytest.mark.parametrize("activation", ["linear", "leaky_relu", (1.0, 0.9), (0.5, -1.0)])
def test_the_closed_form_is_of_the_stacks_activation(activation):
    fit = fit_alpha(homogeneous(activation))
    expected = search(homogeneous(activation), alpha="closed_form").baseline_variance
    assert fit.variance[-1] == pytest.approx(expected)


@pytest.mark.parametrize("activation", ["linear", (0.2, 1.0)])
def test_networks_that_are_drawn_have_the_stacks_activation(activation):
    module, how = homogeneous(activation), {"ratios": [0.25, 0.5], "seed": 0}
    exact, drawn = fit_alpha(module, **how), fit_alpha(module, method="ensemble", **how)
    assert (abs(drawn.log_ratio - exact.log_ratio) <= 5 * drawn.log_ratio_error).all()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"method: the sampler draws ReLU networks"):
        fit_alpha(homogeneous("linear"), method="sampler")
    with pytest.raises(ValueError, match=r"activation has the slopes 0\.5 and -1"):
        fit_alpha(homogeneous((0.5, -1.0)), method="ensemble")
    with pytest.raises(ValueError, match="x1: is zero"):
        fit_alpha(homogeneous("relu"), x1=np.zeros(10))


def test_a_checkpoint_knows_its_stack(tmp_path, rng):
    how = {"ratios": [0.5, 1.0], "draws": 50, "seed": 0, "checkpoint": tmp_path / "fit.json"}
    two = rng.normal(size=(2, 10))
    fit_alpha(homogeneous("relu"), x1=two[0], x2=two[1], **how)
    with pytest.raises(ValueError, match="begun with another fit"):
        fit_alpha(homogeneous("relu", layers=3), x1=two[0], x2=two[1], **how)


def test_a_checkpoint_knows_which_layers_are_trained(tmp_path):
    def build(n, frozen=False):
        model = keras.Sequential([keras.Input((5,)), layers.Dense(n), layers.Dense(1)])
        model.layers[0].trainable = not frozen
        return model

    path = tmp_path / "fit.json"
    how = {"ratios": [0.5, 1.0], "draws": 20, "width": 8, "seed": 0, "checkpoint": path}
    fit_alpha(build, **how)
    frozen = functools.wraps(build)(functools.partial(build, frozen=True))
    with pytest.raises(ValueError, match="begun with another fit"):
        fit_alpha(frozen, **how)


def test_fits_of_deep_exact_networks_extrapolate_to_narrow_ones():
    baseline = fully_connected(748, [500] * 8)
    law = fit_alpha(baseline).polynomial
    widths = np.array([5, 10, 20])
    exact = ClosedFormLaw(baseline).path_variance(widths)
    np.testing.assert_allclose(law.path_variance(widths), exact, rtol=0.02)
