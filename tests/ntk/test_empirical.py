"""Kernels of given models: the variables that count, blocks, files, and what is refused."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from kernel_models import MODELS, agree, inputs, plain_loop, sequential, shaken

from ce_keras import zoo
from ce_keras.ntk import (
    NTKRegressor,
    empirical_ntk,
    ntk_vector_product,
)
from ce_keras.resumable import resumable_array


def test_a_kernel_by_some_variables_is_that_of_their_gradients(float64, rng):
    model = shaken(MODELS["residual"](), rng)
    chosen = [model.layers[1].kernel, model.layers[2].gamma]
    x = inputs(model, 3, rng)
    jacobian = plain_loop(model, x, chosen)
    for engine in ("structured", "tape"):
        kernel = empirical_ntk(model, x, trace_axes=(), engine=engine, variables=chosen)
        np.testing.assert_allclose(kernel, np.einsum("nok,mpk->nmop", jacobian, jacobian))


def test_frozen_layers_do_not_count(float64, rng):
    model = shaken(MODELS["dense"](), rng)
    x = inputs(model, 3, rng)
    whole = empirical_ntk(model, x)
    model.layers[0].trainable = False
    jacobian = plain_loop(model, x, model.layers[1].trainable_variables)
    frozen = empirical_ntk(model, x)
    np.testing.assert_allclose(frozen, np.einsum("nok,mok->nm", jacobian, jacobian) / 3)
    assert (abs(whole - frozen) > 1e-6).all()


def test_variables_that_are_not_trained_count_where_they_are_asked_for(rng):
    norm = layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5), norm, layers.Dense(2)])
    x = rng.normal(size=(5, 4)).astype("float32")
    agree(model, x, variables=[norm.moving_mean, norm.gamma])
    agree(model, x, variables=[norm.moving_mean])


def test_variables_that_are_not_used_have_a_kernel_of_zeros(rng):
    spare = layers.Dense(3)
    spare.build((None, 2))

    class Idle(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.spare = layers.Dense(2), spare

        def call(self, x):
            return self.one(inputs=x)

    model, x = Idle(), rng.normal(size=(3, 4)).astype("float32")
    model(x)
    agree(model, x)
    assert not empirical_ntk(model, x, variables=[spare.kernel]).any()


def test_a_kernel_is_that_of_the_present_weights(float64, rng):
    model = MODELS["dense"]()
    x = inputs(model, 3, rng)
    for _ in range(3):
        shaken(model, rng)
        jacobian = plain_loop(model, x)
        expected = np.einsum("nok,mok->nm", jacobian, jacobian) / 3
        np.testing.assert_allclose(empirical_ntk(model, x), expected)


def test_dropout_and_normalisation_are_in_inference_mode(float64, rng):
    model = shaken(
        sequential((5,), layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.5)), rng
    )
    x = inputs(model, 3, rng)
    kernels = [empirical_ntk(model, x) for _ in range(3)]
    # The first is not compiled: the order of its sums is another one.
    np.testing.assert_allclose(kernels[1], kernels[0], rtol=1e-12)
    np.testing.assert_allclose(kernels[2], kernels[0], rtol=1e-12)


def test_the_model_is_left_as_it_was(rng):
    model = MODELS["conv2d_grouped"]()
    x = inputs(model, 3, rng).astype("float32")
    attributes = [dict(vars(layer)) for layer in model.layers]
    before = model(x).numpy()
    empirical_ntk(model, x)
    assert [set(vars(layer)) for layer in model.layers] == [set(each) for each in attributes]
    assert all(layer.call.__self__ is layer for layer in model.layers)
    np.testing.assert_array_equal(model(x), before)


def test_mixed_precision_gives_a_kernel_in_single_precision(rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = shaken(MODELS["residual"](), rng)
    finally:
        keras.config.set_dtype_policy(before)
    x = inputs(model, 3, rng).astype("float32")
    kernel = empirical_ntk(model, x)
    assert kernel.dtype == np.float32
    jacobian = plain_loop(model, x)
    expected = np.einsum("nok,mok->nm", jacobian, jacobian) / 3
    # bfloat16 keeps eight bits.
    np.testing.assert_allclose(kernel, expected, rtol=0.05)


def test_a_model_takes_several_inputs_by_name(float64, rng):
    left, right = keras.Input((3,), name="left"), keras.Input((4,), name="right")
    x = layers.Concatenate()([layers.Dense(3, "tanh")(left), right])
    model = shaken(keras.Model({"left": left, "right": right}, layers.Dense(2)(x)), rng)
    x = {"left": rng.normal(size=(3, 3)), "right": rng.normal(size=(3, 4))}
    fast, tape = (empirical_ntk(model, x, engine=engine) for engine in ("structured", "tape"))
    np.testing.assert_allclose(fast, tape, rtol=1e-9)


@pytest.mark.parametrize("pack", [lambda y: {"out": y}, lambda y: [y]])
def test_one_output_inside_a_structure_is_that_output(pack, rng):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, pack(layers.Dense(2)(inputs)))
    x = rng.normal(size=(4, 3)).astype("float32")
    agree(model, x)
    product = ntk_vector_product(model, x, np.ones((4, 2)))
    full = empirical_ntk(model, x, trace_axes=())
    np.testing.assert_allclose(product, np.einsum("nmop->no", full), rtol=1e-5)
    assert NTKRegressor(model).fit(x, np.ones((4, 2))).predict(x).shape == (4, 2)


def test_engines_agree_on_a_collegial_resnext(rng):
    model = zoo.resnext11(cardinality=2, width=3, seed=0, classifier_activation=None, classes=2)
    x = rng.normal(size=(2, 28, 28, 1)).astype("float32")
    fast, tape = (empirical_ntk(model, x, engine=engine) for engine in ("structured", "tape"))
    np.testing.assert_allclose(fast, tape, rtol=1e-3)


@pytest.mark.parametrize(
    ("trace", "diagonal"),
    [
        ((-1,), ()),
        pytest.param((), (), marks=pytest.mark.slow),
        ((), (0,)),
        pytest.param((), (1,), marks=pytest.mark.slow),
    ],
)
def test_a_kernel_in_blocks_is_the_whole_kernel(trace, diagonal, float64, rng):
    model = shaken(MODELS["conv2d"](), rng)
    x1, x2 = inputs(model, 5, rng), inputs(model, 5 if diagonal == (0,) else 4, rng)
    for second in (None, x2):
        whole = empirical_ntk(model, x1, second, trace, diagonal)
        for size in (1, 2, 3, 5, 9):
            blocks = empirical_ntk(model, x1, second, trace, diagonal, batch_size=size)
            np.testing.assert_allclose(blocks, whole, rtol=1e-9, atol=1e-9, err_msg=str(size))


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), layers.Dense(4, "relu"), layers.Dense(2)])


def kernels_computed(monkeypatch, stop_after=None):
    """Count the blocks computed; raise, as a kill would, after so many."""
    from ce_keras.ntk.structured import StructuredEngine

    own, calls = StructuredEngine.kernel, []

    def kernel(self, x1, x2):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(1)
        return own(self, x1, x2)

    monkeypatch.setattr(StructuredEngine, "kernel", kernel)
    return calls


def test_only_the_upper_triangle_of_blocks_is_computed(model, monkeypatch, rng):
    calls = kernels_computed(monkeypatch)
    empirical_ntk(model, rng.normal(size=(8, 5)).astype("float32"), batch_size=2)
    assert len(calls) == 4 * 5 / 2


def test_the_batch_size_follows_from_memory(model, monkeypatch, rng):
    calls = kernels_computed(monkeypatch)
    x = rng.normal(size=(40, 5)).astype("float32")
    whole = empirical_ntk(model, x)
    assert len(calls) == 1
    # As much as ten of these examples take.
    ((engine, _),) = vars(model)["_ce_keras_kernels"].values()
    monkeypatch.setattr("ce_keras.ntk.empirical._MEMORY", 80 * engine.numbers_per_example)
    np.testing.assert_allclose(empirical_ntk(model, x), whole, rtol=1e-5)
    assert len(calls) == 1 + 4 * 5 / 2


def test_a_kernel_in_a_file_is_the_one_in_memory(model, tmp_path, rng):
    x = rng.normal(size=(7, 5)).astype("float32")
    path = tmp_path / "new" / "kernel.npy"
    for trace in ((-1,), ()):
        kernel = empirical_ntk(model, x, trace_axes=trace, batch_size=3, out=path)
        assert isinstance(kernel, np.memmap)
        np.testing.assert_allclose(kernel, empirical_ntk(model, x, trace_axes=trace), rtol=1e-5)
        np.testing.assert_array_equal(np.load(path), kernel)
        assert [file.name for file in path.parent.iterdir()] == ["kernel.npy"]


def test_double_precision_is_kept(tmp_path, rng):
    model = keras.Sequential([keras.Input((5,), dtype="float64"), layers.Dense(2, dtype="float64")])
    kernel = empirical_ntk(model, rng.normal(size=(4, 5)), batch_size=2, out=tmp_path / "k.npy")
    assert kernel.dtype == np.float64


def test_a_kernel_is_resumed_after_a_kill(model, tmp_path, monkeypatch, rng):
    x = rng.normal(size=(8, 5)).astype("float32")
    path = tmp_path / "kernel.npy"
    with monkeypatch.context() as patch:
        calls = kernels_computed(patch, stop_after=6)
        with pytest.raises(KeyboardInterrupt):
            empirical_ntk(model, x, batch_size=2, out=path)
        assert len(calls) == 6
    assert not path.exists()
    with monkeypatch.context() as patch:
        calls = kernels_computed(patch)
        resumed = empirical_ntk(model, x, batch_size=2, out=path)
        assert len(calls) == 4
    np.testing.assert_allclose(resumed, empirical_ntk(model, x), rtol=1e-5)


def test_a_kernel_of_other_weights_or_variables_is_not_resumed(model, tmp_path, monkeypatch, rng):
    x = rng.normal(size=(8, 5)).astype("float32")
    path = tmp_path / "kernel.npy"
    with monkeypatch.context() as patch:
        kernels_computed(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            empirical_ntk(model, x, batch_size=2, out=path)
    with pytest.raises(ValueError, match="inputs or arguments"):
        empirical_ntk(model, x, batch_size=2, out=path, variables=model.layers[1].variables)
    model.layers[0].kernel.assign(model.layers[0].kernel + 1)
    with pytest.raises(
        ValueError, match="was begun with another model, weights, inputs or arguments"
    ):
        empirical_ntk(model, x, batch_size=2, out=path)


def test_a_kill_between_renaming_and_removing_leaves_no_zeros(model, tmp_path, monkeypatch, rng):
    x = rng.normal(size=(8, 5)).astype("float32")
    path = tmp_path / "kernel.npy"
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        first = np.array(empirical_ntk(model, x, batch_size=2, out=path))
    assert (tmp_path / ".kernel.progress.json").exists()
    path.unlink()
    again = empirical_ntk(model, x, batch_size=2, out=path)
    np.testing.assert_array_equal(again, first)
    assert abs(first).min() > 0


def test_progress_of_an_array_that_is_gone_is_ignored(model, tmp_path, monkeypatch, rng):
    x = rng.normal(size=(8, 5)).astype("float32")
    path = tmp_path / "kernel.npy"
    with monkeypatch.context() as patch:
        kernels_computed(patch, stop_after=6)
        with pytest.raises(KeyboardInterrupt):
            empirical_ntk(model, x, batch_size=2, out=path)
    (part,) = tmp_path.glob(".kernel.part-*.npy")
    part.rename(tmp_path / f".kernel.part-{32 * '0'}.npy")
    resumed = empirical_ntk(model, x, batch_size=2, out=path)
    np.testing.assert_allclose(resumed, empirical_ntk(model, x), rtol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.npy"]


@pytest.mark.parametrize("content", ["[1]", "{", "\x00\xff"])
def test_damaged_progress_is_named(content, model, tmp_path, rng):
    (tmp_path / ".kernel.progress.json").write_text(content)
    with pytest.raises(ValueError, match=r"kernel\.progress\.json is damaged"):
        empirical_ntk(model, rng.normal(size=(4, 5)).astype("float32"), out=tmp_path / "kernel.npy")


def test_a_second_process_is_told_that_the_file_is_in_use(model, tmp_path, rng):
    path = tmp_path / "kernel.npy"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from ce_keras import files\n"
            f"with files.exclusive('out', {str(path)!r}): print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    x = rng.normal(size=(4, 5)).astype("float32")
    with pytest.raises(ValueError, match=r"out: .*kernel\.npy is in use by another process"):
        empirical_ntk(model, x, out=path)
    holder.kill()  # Who holds a lock may die of anything.
    holder.communicate()
    assert empirical_ntk(model, x, out=path).shape == (4, 4)
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.npy"]


def test_a_link_is_written_through(model, tmp_path, rng):
    target, link = tmp_path / "target.npy", tmp_path / "link.npy"
    link.symlink_to(target)
    kernel = empirical_ntk(model, rng.normal(size=(4, 5)).astype("float32"), out=link)
    assert link.is_symlink()
    np.testing.assert_array_equal(np.load(target), kernel)


def test_paths_that_no_array_can_have_are_refused_before_any_work(model, tmp_path, rng):
    (tmp_path / "folder.npy").mkdir()
    for name in ("folder.npy", 240 * "k" + ".npy"):
        with pytest.raises(ValueError, match="out: got"):
            empirical_ntk(model, rng.normal(size=(4, 5)), out=tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.npy"]


def test_arrays_go_to_npy_files_only():
    with (
        pytest.raises(ValueError, match=r"out: got 'kernel\.csv'; it must end in \.npy"),
        resumable_array("out", "kernel.csv", (2,), "float32", None, "another kernel"),
    ):
        pass


class Centred(layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0)


def test_nan_inputs_and_outputs_without_examples_are_refused(rng):
    image = keras.Input((3,))
    outputs = layers.Dense(2)(image)
    model = keras.Model(image, outputs)
    x = rng.normal(size=(4, 3)).astype("float32")
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match="x1: 1 of its 12 numbers are infinite or NaN"):
        empirical_ntk(model, x)
    with pytest.raises(ValueError, match="x2: 1 of its"):
        empirical_ntk(model, x[:1], x)
    total = keras.Model(image, keras.ops.sum(outputs))
    with pytest.raises(ValueError, match=r"shape \(\) for one example; their first axis must be"):
        empirical_ntk(total, x[:1])


def test_examples_that_interact_are_refused(rng):
    model = sequential((5,), layers.Dense(3), Centred(), layers.Dense(2))
    with pytest.raises(ValueError, match="changes with the other examples of its batch"):
        empirical_ntk(model, rng.normal(size=(4, 5)))
    with pytest.raises(ValueError, match="changes with the other examples of its batch"):
        empirical_ntk(model, rng.normal(size=(1, 5)))


def test_bad_arguments_are_refused_by_name(rng):
    model = sequential((5,), layers.Dense(3), layers.Dense(2))
    other = sequential((5,), layers.Dense(3))
    image = keras.Input((5,))
    two = keras.Model(image, [layers.Dense(2)(image), layers.Dense(3)(image)])
    x = rng.normal(size=(4, 5)).astype("float32")
    for arguments, message in (
        ({"engine": "fast"}, "engine: got 'fast'"),
        ({"trace_axes": (2,)}, "trace_axes: got 2; the output has axes 0 to 1"),
        ({"trace_axes": (0,)}, "axis 0 is that of the examples"),
        ({"trace_axes": (-1,), "diagonal_axes": (1,)}, "in one of them at most"),
        ({"trace_axes": (1, -1)}, "an axis is named twice"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"variables": other.trainable_variables}, "are not variables of"),
        ({"variables": []}, "it must be a list of the model's"),
        ({"variables": 2 * model.trainable_variables}, "one is named twice"),
        ({"variables": [3]}, "are not variables of"),
        ({"x2": x[:3], "diagonal_axes": (0,)}, "x2: has 3 examples where x1 has 4"),
        ({"x1": x[:0]}, r"x1: got shapes \[\(0, 5\)\]"),
        ({"model": two}, "it has 2 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            empirical_ntk(**{"model": model, "x1": x, **arguments})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tf.data.Dataset.range(3), "x1: got a tf.data.Dataset"),
        (np.full((4, 3), np.nan), "x1: 12 of its 12 numbers are infinite or NaN"),
        (np.ones((4, 3), complex), "x1: has complex numbers"),
        ("abc", "x1: got shapes"),
        (None, "x1: got None"),
        (np.ones((0, 3)), "x1: got shapes"),
    ],
)
def test_inputs_that_are_not_arrays_of_examples_are_refused_by_name(wrong, message):
    model = sequential((3,), layers.Dense(2))
    for function in (empirical_ntk, lambda *a: ntk_vector_product(*a, np.ones((4, 2)))):
        with pytest.raises(ValueError, match=message):
            function(model, wrong)
    with pytest.raises(ValueError, match=message.replace("x1", "x")):
        NTKRegressor(model).fit(wrong, np.ones((4, 2)))


class Scaled(layers.Layer):
    """A layer whose configuration does not say what it does."""

    gain = 1.0

    def call(self, x):
        return x * self.gain


def test_a_kernel_of_a_layer_of_other_settings_is_not_resumed(tmp_path, monkeypatch, rng):
    scaled, path = Scaled(), tmp_path / "kernel.npy"
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), scaled, layers.Dense(2)])
    x = rng.normal(size=(8, 5)).astype("float32")
    with monkeypatch.context() as patch:
        kernels_computed(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            empirical_ntk(model, x, batch_size=2, out=path)
    scaled.gain = 3.0
    with pytest.raises(ValueError, match="was begun with another model"):
        empirical_ntk(model, x, batch_size=2, out=path)
