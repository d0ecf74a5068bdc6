"""Any Keras model becomes the ensemble that theory asks for, and nothing else in it changes."""

import json

import fresh
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from rewritable import (
    ALPHA,
    BUILDERS,
    convolutional,
    every_model,
    inputs_of,
    mlp,
)

import ce_keras
from ce_keras import collegialize, inspect, search, zoo
from ce_keras.geometry import Design
from ce_keras.layers import Aggregate, CollegialConv2D, CollegialDense
from ce_keras.layers.flops import flops, trained_parameters
from ce_keras.variance import closed_form
from ce_keras.variance.law import variance


@every_model
def test_the_ensemble_is_what_the_report_says(name, rng, tmp_path):
    model = BUILDERS[name]()
    for mode in ("primal", "dual"):
        ensemble = collegialize(model, mode=mode, alpha=ALPHA.get(name))
        planned = inspect(model, mode=mode, alpha=ALPHA.get(name))
        # The prediction is the geometry's; the other count is of the built layers.
        assert ensemble.report.after == planned.after
        assert ensemble.report.after.params == trained_parameters(ensemble)
        assert ensemble.report.after.flops == flops(ensemble)
        assert [x.name for x in ensemble.layers] == [x.name for x in model.layers]
        assert [x.shape for x in ensemble.outputs] == [x.shape for x in model.outputs]
        assert type(ensemble) is type(model)
        assert planned.candidates
        if mode == "primal":
            near = abs(planned.after.params - planned.before.params)
            (decision, *_) = planned.decisions
            assert near <= decision.path_params / 2 * len(planned.decisions)
        else:
            for each in planned.candidates:
                # The cardinality is a whole number: half a path to either side.
                assert each.variance / each.baseline_variance == pytest.approx(
                    1, abs=0.5 / each.cardinality + 0.01
                )


@every_model
def test_the_ensemble_trains_and_comes_back(name, rng, tmp_path):
    keras.utils.set_random_seed(0)  # A squeeze of few units may be dead from the start.
    model = collegialize(BUILDERS[name](), mode="dual", alpha=ALPHA.get(name))
    x = inputs_of(model, rng)
    y = keras.tree.map_structure(keras.ops.convert_to_numpy, model(x))
    # Tracing takes longer than one step.
    model.compile("sgd", keras.tree.map_structure(lambda _: "mse", y), run_eagerly=True)
    kernels = [w for w in model.trainable_weights if w.name == "kernel"]
    before = [kernel.numpy() for kernel in kernels]
    model.fit(x, keras.tree.map_structure(np.zeros_like, y), verbose=0)
    assert all(np.any(old != new.numpy()) for old, new in zip(before, kernels, strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), loaded(x), model(x)
    )


@pytest.mark.slow
def test_resnet50_becomes_what_the_zoo_calls_resnext50():
    model = keras.applications.ResNet50(weights=None)
    assert str(inspect(model, alpha=1.6).decisions[0].design) == "12x10d"  # Table 2.
    (exact,) = inspect(model).decisions
    assert exact.law == "closed form, correlation 1"
    assert str(exact.design) == str(search("resnext50", alpha="closed_form").design)
    ensemble = collegialize(model, design="12x10d")
    ours = zoo.resnext50(cardinality=12, width=10)
    names = [layer.name for layer in ours.layers if "block" in layer.name and "conv" in layer.name]
    compared = 0
    for layer_name in names:
        layer = ours.get_layer(layer_name)
        if isinstance(layer, keras.layers.Conv2D) and "_0_" not in layer_name:
            twin = ensemble.get_layer(layer_name)
            assert twin.kernel.shape == layer.kernel.shape
            assert getattr(twin, "groups", 1) == layer.groups
            compared += 1
    assert compared == 48
    # Left alone: what is no path.
    for layer_name in ("conv1_conv", "predictions", "conv3_block1_0_conv"):
        assert type(ensemble.get_layer(layer_name)) is type(model.get_layer(layer_name))
        config = model.get_layer(layer_name).get_config()
        assert ensemble.get_layer(layer_name).get_config() == config


def test_paths_are_independent_and_summed_as_in_eq_4(rng):
    ensemble = collegialize(mlp(), design="4x8d")
    first, second, third, last = ensemble.layers
    assert [type(x) for x in ensemble.layers] == [CollegialDense] * 4
    x = rng.standard_normal((5, 12)).astype("float32")
    total = 0
    for path in range(4):
        mine = slice(8 * path, 8 * path + 8)
        h = np.maximum(x @ first.kernel.numpy()[:, mine], 0)
        h = np.maximum(h @ second.kernel.numpy()[path], 0)
        h = np.maximum(h @ third.kernel.numpy()[path], 0)
        total = total + h @ last.kernel.numpy()[mine]
    logits = total / np.sqrt(4)
    np.testing.assert_allclose(ensemble(x), tf.nn.softmax(logits), rtol=1e-4, atol=1e-6)
    assert last.kernel.shape == (32, 3)
    assert last.bias.shape == (3,)


def test_an_aggregate_is_a_block_of_paths_and_their_sum(rng):
    x = rng.standard_normal((5, 12)).astype("float32")
    summing = CollegialDense(2, 3, aggregate=True, use_bias=False)
    apart = CollegialDense(6, 3, use_bias=False)
    summing(x), apart(x)
    apart.kernel.assign(summing.kernel.numpy().reshape(3, 4, 2))
    np.testing.assert_allclose(summing(x), Aggregate(3)(apart(x)), rtol=1e-5, atol=1e-6)


def test_outputs_of_a_bottleneck_start_as_large_whatever_the_cardinality(rng):
    """The exit's initialiser sees one path, and the sum is divided by sqrt(m): Eq. 4."""
    image = keras.Input((1, 1, 64))
    x = layers.Conv2D(64, 1, activation="relu", use_bias=False)(image)
    x = layers.Conv2D(64, 3, padding="same", activation="relu", use_bias=False)(x)
    x = layers.Conv2D(2000, 1, use_bias=False, kernel_initializer="random_normal", name="exit")(x)
    ensemble = collegialize(keras.Model(image, x), design="16x16d")
    kernel = ensemble.get_layer("exit").kernel.numpy()
    # The standard deviation of 512,000 normals is known to 0.1 %; five of its errors.
    assert kernel.std() == pytest.approx(0.05 / 4, rel=5 / np.sqrt(2 * kernel.size))


def test_one_design_for_each_stage():
    model = convolutional()
    whole = inspect(model, design="4x4d")
    assert [each.path_widths for each in whole.candidates] == [(4, 4), (8, 8)]
    assert len(whole.decisions) == 1
    stages = inspect(model, "dual", per="stage").decisions
    assert [decision.width for decision in stages] == [16, 32]


def test_only_and_skip():
    model = convolutional()
    report = inspect(model, only="a_*")
    assert [each.name for each in report.candidates] == ["a"]
    assert "only=['a_*']" in next(x.reason for x in report.skipped if x.name == "b_2_conv")
    assert [each.name for each in inspect(model, skip=["b"]).candidates] == ["a"]
    with pytest.raises(ValueError, match="skip: 'c_\\*' fits no layer"):
        inspect(model, skip="c_*")


def test_alpha_by_chain_and_by_fit():
    model = convolutional()
    report = inspect(model, alpha={"a": 3.0}, per="stage")
    assert [each.alpha for each in report.candidates] == [3.0, None]
    assert [each.law for each in report.decisions] == ["alpha = 3", "closed form, correlation 1"]
    with pytest.raises(ValueError, match="alpha: 'c' fits no"):
        inspect(model, alpha={"c": 3.0})
    fitted = inspect(model, alpha="fit", seed=1)
    assert "±" in fitted.decisions[0].law
    again = inspect(model, alpha="fit", seed=1)
    assert again.candidates == fitted.candidates
    exact = inspect(mlp(), "dual")
    assert exact.decisions[0].law == "closed form"
    assert exact.candidates[0].alpha is None
    assert "exact" in repr(exact)


def test_a_block_of_another_kernel_has_its_own_exact_law():
    (decision,) = inspect(convolutional(kernel=5), only="a").decisions
    n = decision.width
    gram = closed_form.gram_of(25, 1.0)
    widths = [(n, n), (decision.design.width,) * 2]
    before, path = (closed_form.relative_variance(list(each), gram) for each in widths)
    (candidate,) = inspect(convolutional(kernel=5), only="a").candidates
    assert candidate.baseline_variance == pytest.approx(before)
    assert candidate.variance == pytest.approx(path / candidate.cardinality)


def test_a_deeper_chain_is_fitted_by_ensembles():
    image = keras.Input((6, 6, 4))
    y = image
    for step, kernel in enumerate((1, (3, 1), (1, 3), 1)):
        y = layers.Conv2D(4 if step == 3 else 6, kernel, padding="same", name=f"d_{step}")(y)
    # No closed form is known of two kernels in a row: a fit is made without being asked for.
    (decision,) = inspect(keras.Model(image, y), design="2x3d", seed=0).decisions
    # Three layers behind the first, as in a dense stack: 5 to first order, and somewhat less here.
    assert 1 < decision.alpha < 5


def test_the_variance_is_the_laws_for_the_built_layers():
    model = convolutional()
    ensemble = collegialize(model, design="3x5d", alpha=1.6)
    kernels = [ensemble.get_layer(f"a_{i}_conv").kernel for i in (1, 2, 3)]
    fan_ins = [np.prod(k.shape[:-1]) for k in kernels]
    fan_ins[2] /= 3  # The exit reads all paths.
    s = sum(1 / n for n in fan_ins)
    assert ensemble.report.candidates[0].variance == pytest.approx(float(variance(1.6, s, 3)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MobileNetV2", "already grouped, channel by channel"),
        pytest.param("DenseNet121", "no 1x1 convolution ends it", marks=pytest.mark.slow),
        pytest.param(
            "ConvNeXtTiny",
            "no hidden layer|one hidden layer|not a chain",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_models_without_chains_say_why(name, reason):
    model = getattr(keras.applications, name)(weights=None)
    report = inspect(model)
    assert not report.candidates
    assert any(__import__("re").search(reason, each.reason) for each in report.skipped)
    with pytest.raises(ValueError, match="nothing in it can be ensembled"):
        collegialize(model)


def reasons(model):
    return {each.name.split("/")[-1]: each.reason for each in inspect(model).skipped}


def test_why_layers_are_left():
    x = keras.Input((12,))
    softmax = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(8, "softmax", name="a"),
            layers.Dense(8, "relu", name="b"),
            layers.Dense(1, name="c"),
        ]
    )
    assert "softmax" in reasons(softmax)["a"]
    assert "one hidden layer" in reasons(softmax)["b"]
    assert "no hidden layer" in reasons(softmax)["c"]

    hidden = layers.Dense(8, name="a")(x)
    read = layers.Dense(8, name="b")(hidden)
    out = layers.Dense(1, name="c")(read)
    assert "one hidden layer" in reasons(keras.Model(x, [hidden, out]))["b"]

    once = layers.Dense(12, name="twice")
    y = layers.Dense(1, name="c")(layers.Dense(4, name="b")(once(x)))
    z = layers.Dense(1, name="e")(layers.Dense(4, name="d")(once(layers.Dense(12)(x))))
    assert "shared" in reasons(keras.Model(x, [y, z]))["twice"]

    class Mine(layers.Dense):
        pass

    mine = keras.Sequential([keras.Input((4,)), Mine(12, name="m"), *mlp().layers])
    assert "subclassed" in next(r.reason for r in inspect(mine).skipped if r.name == "m")

    narrow = mlp((1, 1))
    assert "too narrow" in reasons(narrow)["fc0"]

    grouped = collegialize(convolutional(), design="2x8d")
    assert "already grouped" in reasons(grouped)["a_2_conv"]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = [layers.Dense(32, "relu") for _ in range(3)]

    def call(self, x):
        for layer in self.inner:
            x = layer(x)
        return x


def test_subclassed_models_say_what_to_do():
    model = Subclassed()
    with pytest.raises(ValueError, match=r"keras\.Model\(inputs, model\.call\(inputs\)\)"):
        collegialize(model)
    inputs = keras.Input((12,))
    assert len(inspect(keras.Model(inputs, model.call(inputs))).candidates) == 1
    with pytest.raises(ValueError, match=r"begin it with keras\.Input"):
        inspect(keras.Sequential([layers.Dense(2)]))
    wrapped = keras.Model(inputs, layers.Dense(1)(Subclassed()(inputs)))
    assert any("subclassed" in each.reason for each in inspect(wrapped).skipped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode: got 'both'"),
        ({"per": "layer"}, "per: got 'layer'"),
        ({"design": "10"}, "design: got '10'"),
        ({"design": 8}, r"design: got 8; it must be like '12x10d', or \(12, 10\)"),
        ({"only": 3}, r"only: got 3; it must be a pattern like 'conv4_\*'"),
        ({"design": "2x65d"}, "design: got 2x65d; a path .* at most 64"),
        ({"tolerance": -1}, "tolerance"),
        ({"measure": 0}, "measure: got 0"),
        ({"alpha": -1}, "alpha"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        collegialize(mlp(), **options)


def test_policy_regularisers_and_compilation_are_kept():
    with_policy = keras.Sequential(
        [
            keras.Input((12,)),
            *(
                layers.Dense(32, "tanh", dtype="mixed_float16", kernel_regularizer="l2")
                for _ in range(2)
            ),
            layers.Dense(1, dtype="float64"),
        ]
    )
    with_policy.compile("adam", "mae")
    ensemble = collegialize(with_policy, design="2x16d")
    for old, new in zip(with_policy.layers, ensemble.layers, strict=True):
        assert old.dtype_policy.name == new.dtype_policy.name
        assert old.name == new.name
        assert old.activation is new.activation
    assert ensemble.layers[1].kernel_regularizer.get_config() == {"l2": 0.01}
    assert ensemble.loss == "mae"
    assert isinstance(ensemble.optimizer, keras.optimizers.Adam)


def test_step_times_and_json():
    ensemble = collegialize(mlp(), mode="dual", measure=8)
    content = json.loads(json.dumps(ensemble.report.to_dict()))
    assert content["before"]["step_seconds"] > 0
    assert content["after"]["step_seconds"] > 0
    assert content["candidates"][0]["layers"] == ["fc0", "fc1", "fc2", "head"]
    assert "<table>" in ensemble.report._repr_html_()
    with pytest.raises(ValueError, match=r"measure: .*fixed sizes"):
        open_ended = keras.Sequential([keras.Input((None, 12)), *mlp().layers])
        collegialize(open_ended, measure=2)


def test_a_design_can_be_given_as_one():
    assert inspect(mlp(), design=Design(3, 4)).candidates[0].path_widths == (4, 4, 4)


def test_exports_are_equal(tmp_path, rng):
    model = collegialize(convolutional(squeeze=4), mode="dual")
    x = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    expected = model(x)
    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")  # Kept: its variables go when it goes.
    served = saved.serve(x)
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-6)
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (onnx,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(onnx, expected, rtol=1e-4, atol=1e-5)
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    (slot,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(slot["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(slot["index"], x)
    interpreter.invoke()
    lite = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(lite, expected, rtol=1e-4, atol=1e-5)


def test_the_shell_saves_what_loads_elsewhere(tmp_path, capsys, rng):
    from ce_keras.cli import main

    mlp().save(tmp_path / "model.keras")
    arguments = ["collegialize", f"{tmp_path}/model.keras", "--mode", "dual"]
    assert main([*arguments, "--save", f"{tmp_path}/smaller.keras", "--seed", "0"]) == 0
    assert "times fewer" in capsys.readouterr().out
    assert main([*arguments, "--design", "4x8d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["cardinality"] == 4
    assert main([*arguments, "--save", f"{tmp_path}/smaller.h5"]) == 2
    code = "import sys, ce_keras, keras; print(keras.models.load_model(sys.argv[1]).count_params())"
    loaded = fresh.run(["-c", code, tmp_path / "smaller.keras"])
    smaller = keras.models.load_model(tmp_path / "smaller.keras")
    assert int(loaded.stdout) == smaller.count_params()
    assert isinstance(smaller.layers[0], CollegialDense)


def test_a_grouped_convolution_is_ours():
    ensemble = collegialize(convolutional(), design="2x8d")
    assert type(ensemble.get_layer("a_2_conv")) is CollegialConv2D
    assert ce_keras.collegialize is collegialize


def test_what_is_frozen_counts_and_stays_frozen():
    def build():
        widths = [layers.Dense(64, "relu", name=f"hidden{i}") for i in range(3)]
        return keras.Sequential([keras.Input((12,)), *widths, layers.Dense(2)])

    free = collegialize(build(), design=(4, 16))
    frozen = build()
    frozen.trainable = False
    ensemble = collegialize(frozen, design="4x16d")
    assert not ensemble.trainable
    assert not ensemble.trainable_weights
    assert ensemble.report.after == free.report.after
    assert ensemble.report.before == inspect(build()).before
    part = build()
    part.get_layer("hidden1").trainable = False
    trained = [weight.path for weight in collegialize(part, design="4x16d").trainable_weights]
    assert len(trained) == 6
    assert not any("hidden1" in path for path in trained)
