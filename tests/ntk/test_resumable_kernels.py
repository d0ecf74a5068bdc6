import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from ce_keras.ntk import empirical_ntk
from ce_keras.resumable import resumable_array


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


def test_a_kernel_in_a_file_is_the_one_in_memory(model, tmp_path, rng):
    x = rng.normal(size=(7, 5)).astype("float32")
    path = tmp_path / "new" / "kernel.npy"
    for trace in ((-1,), ()):
        kernel = empirical_ntk(model, x, trace_axes=trace, batch_size=3, out=path)
        assert isinstance(kernel, np.memmap)
        np.testing.assert_allclose(kernel, empirical_ntk(model, x, trace_axes=trace), rtol=1e-5)
        np.testing.assert_array_equal(np.load(path), kernel)
        assert [file.name for file in path.parent.iterdir()] == ["kernel.npy"]


def test_only_the_symmetric_half_is_computed(model, monkeypatch, rng):
    calls = kernels_computed(monkeypatch)
    empirical_ntk(model, rng.normal(size=(8, 5)).astype("float32"), batch_size=2)
    assert len(calls) == 4 * 5 / 2


def test_a_kernel_goes_on_after_a_kill(model, tmp_path, monkeypatch, rng):
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


def test_other_weights_do_not_go_on(model, tmp_path, monkeypatch, rng):
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


def test_blocks_follow_from_memory(model, monkeypatch, rng):
    calls = kernels_computed(monkeypatch)
    x = rng.normal(size=(40, 5)).astype("float32")
    whole = empirical_ntk(model, x)
    assert len(calls) == 1
    # As much as ten of these examples take.
    ((engine, _),) = vars(model)["_ce_keras_kernels"].values()
    monkeypatch.setattr("ce_keras.ntk.empirical._MEMORY", 80 * engine.numbers_per_example)
    np.testing.assert_allclose(empirical_ntk(model, x), whole, rtol=1e-5)
    assert len(calls) == 1 + 4 * 5 / 2


def test_double_precision_is_kept(tmp_path, rng):
    model = keras.Sequential([keras.Input((5,), dtype="float64"), layers.Dense(2, dtype="float64")])
    kernel = empirical_ntk(model, rng.normal(size=(4, 5)), batch_size=2, out=tmp_path / "k.npy")
    assert kernel.dtype == np.float64


def test_only_npy_files():
    with (
        pytest.raises(ValueError, match=r"out: got 'kernel\.csv'; it must end in \.npy"),
        resumable_array("out", "kernel.csv", (2,), "float32", None, "another kernel"),
    ):
        pass


def test_paths_that_no_array_can_have_are_refused_before_any_work(model, tmp_path, rng):
    (tmp_path / "folder.npy").mkdir()
    for name in ("folder.npy", 240 * "k" + ".npy"):
        with pytest.raises(ValueError, match="out: got"):
            empirical_ntk(model, rng.normal(size=(4, 5)), out=tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.npy"]


def test_a_link_is_written_through(model, tmp_path, rng):
    target, link = tmp_path / "target.npy", tmp_path / "link.npy"
    link.symlink_to(target)
    kernel = empirical_ntk(model, rng.normal(size=(4, 5)).astype("float32"), out=link)
    assert link.is_symlink()
    np.testing.assert_array_equal(np.load(target), kernel)


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


def test_progress_of_an_array_that_is_gone_is_not_believed(model, tmp_path, monkeypatch, rng):
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


@pytest.mark.parametrize("content", ["[1]", "{", "\x00\xff"])
def test_damaged_progress_is_named(content, model, tmp_path, rng):
    (tmp_path / ".kernel.progress.json").write_text(content)
    with pytest.raises(ValueError, match=r"kernel\.progress\.json is damaged"):
        empirical_ntk(model, rng.normal(size=(4, 5)).astype("float32"), out=tmp_path / "kernel.npy")
