"""Figure 2: the ensemble's kernel on the circle tends to its mean as paths are added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.progress import progress
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.store import Points
from ce_keras.variance.closed_form import infinite_width_kernel
from ce_keras.variance.samplers import generator, stack_kernels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 2: the ensemble's kernel on the circle"

# Bound on the largest of some tens of correlated normal deviates; exceeded once in a few hundred.
_LARGEST = 4.0


class Settings(NamedTuple):
    """The settings.

    Attributes:
        depth: number of weight matrices (L).
        width: width of every hidden layer.
        angles: number of points on the circle.
        paths: numbers of paths of the ensembles that are shown.
        draws: number of networks drawn for the mean.
    """

    depth: int = 4
    width: int = 1000
    angles: int = 33
    paths: tuple[int, ...] = (1, 10, 100, 1000)
    draws: int = 1000


SCALES: dict[Scale, Settings] = {
    "small": Settings(width=200, paths=(1, 10, 100)),
    "full": Settings(),
}


def circle(angles: np.ndarray) -> np.ndarray:
    """Return the inputs x_gamma of the figure, shape `(angles, 2)`."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Draw K(x_0, x_gamma) of ensembles and its mean; compute the infinitely wide network's."""
    angles = np.linspace(-np.pi, np.pi, settings.angles)
    x = np.concatenate([circle(np.zeros(1)), circle(angles)])
    widths = [settings.width] * (settings.depth - 1)
    draws = max(settings.draws, *settings.paths)
    limit = infinite_width_kernel(x[:1], x[1:], settings.depth)[0]

    def drawn() -> dict[str, Any]:
        kernels = _kernels(x, widths, draws, seed)
        return {
            "ensembles": {str(m): kernels[:m].mean(0).tolist() for m in settings.paths},
            "mean": kernels.mean(0).tolist(),
            "error": (kernels.std(0, ddof=1) / np.sqrt(draws)).tolist(),
            "std": kernels.std(0, ddof=1).tolist(),
        }

    return {"angles": angles.tolist(), "limit": limit.tolist(), **points("kernels", drawn)}


def _kernels(x: np.ndarray, widths: list[int], draws: int, seed: int) -> np.ndarray:
    rng, step = generator(seed), max(1, draws // 20)
    parts = [
        stack_kernels(x, widths, min(step, draws - begun), seed=rng)[:, 0, 1:]
        for begun in progress(range(0, draws, step), desc="fig2", delay=1)
    ]
    return np.concatenate(parts)


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare the mean with the infinitely wide network's kernel, and ensembles with 1/sqrt(m)."""
    mean, error, limit = (np.array(data[name]) for name in ("mean", "error", "limit"))
    largest = float(abs((mean - limit) / error).max())
    name = "largest distance of the mean from the infinitely wide kernel, in standard errors"
    checks = [Check(name, f"under {_LARGEST:g}", f"{largest:.1f}", largest < _LARGEST)]
    for m, kernel in data["ensembles"].items():
        if int(m) == 1:
            continue
        # The distance of an ensemble, over the one expected of independent paths.
        relative = (np.array(kernel) - limit) / np.array(data["std"])
        distance = float(np.sqrt((relative**2).mean() * int(m)))
        name = f"distance from the mean kernel at m = {m}, over one path's spread / sqrt(m)"
        checks.append(Check(name, "about 1", f"{distance:.2f}", distance < 3))
    return checks


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    low, high = _spread(data)
    most = max(data["settings"]["paths"])
    return (
        f"One path's kernel strays from its mean by {low:.0f} to {high:.0f} %; the kernel of "
        f"{most:,} paths lies on the mean, which is the infinitely wide network's."
    )


def _spread(data: dict[str, Any]) -> tuple[float, float]:
    """Return the least and the largest standard deviation of one path, in percent of the mean."""
    spread = 100 * np.array(data["std"]) / np.array(data["limit"])
    return float(spread.min()), float(spread.max())


def say(data: dict[str, Any]) -> str:
    """Return what was drawn, and what it was compared with."""
    settings = data["settings"]
    return (
        f"K(x_0, x_gamma) of networks with L = {settings['depth']}, n = {settings['width']}: "
        "the more paths, the nearer the ensemble's kernel is to its mean. The mean is compared "
        "with the infinitely wide network's kernel in closed form; the paper drew a network 100 "
        "times wider."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw ensembles of several sizes, and the mean with its band."""
    left, right = figure.subplots(1, 2, sharey=True)
    angles, limit = np.array(data["angles"]), np.array(data["limit"])
    for m, kernel in data["ensembles"].items():
        left.plot(angles, kernel, lw=1.2, label=f"m = {m}")
    left.plot(angles, limit, color="black", lw=1, ls="--", label="infinitely wide")
    left.set_ylabel("K(x₀, x_γ)")
    left.legend(frameon=False)
    mean, error, spread = (np.array(data[name]) for name in ("mean", "error", "std"))
    right.fill_between(angles, mean - spread, mean + spread, alpha=0.15, lw=0, label="one path ± σ")
    right.errorbar(angles, mean, 2 * error, fmt=".", color="tab:red", label="mean ± 2 errors")
    right.plot(angles, limit, color="black", lw=1, ls="--", label="infinitely wide")
    right.legend(frameon=False)
    for ax in (left, right):
        ax.set_xlabel("angle γ")
        ax.set_xticks([-np.pi, 0, np.pi], ["-π", "0", "π"])
