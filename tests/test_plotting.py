import matplotlib.pyplot as plt
import numpy as np
import pytest

from ce_keras import plotting
from ce_keras.optimum import search


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("mode", ["primal", "dual"])
def test_the_curve_and_its_optimum_are_drawn(mode):
    solution = search("resnext29", mode)
    ax = solution.plot()
    line = ax.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 129))
    np.testing.assert_array_equal(line.get_ydata(), solution.curve.objective)
    texts = [text.get_text() for text in ax.texts]
    assert texts == [str(solution.design), "1x128d"]
    marked = ax.lines[1].get_xydata()[0]
    assert marked[0] == solution.design.width
    assert marked[1] == solution.curve.objective[solution.design.width - 1]
    assert "within 0.02" in ax.get_xlabel()


def test_given_axes_are_drawn_on():
    _, axes = plt.subplots(1, 2)
    assert search("resnext29").plot(axes[1]) is axes[1]
    assert not axes[0].lines


def test_a_few_widths_are_drawn_as_points_and_zero_tolerance_has_no_band():
    ax = search("resnext29", widths=[8, 24], tolerance=0).plot()
    assert ax.lines[0].get_marker() == "."
    assert "shaded" not in ax.get_xlabel()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "20"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_saved_curves_are_pictures(tmp_path, suffix):
    path = tmp_path / f"curve.{suffix}"
    plotting.save_curves([search("resnext29", mode) for mode in ("primal", "dual")], path)
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[suffix])
