"""Lemma 1: the ensemble's kernel tends to its mean as 1/sqrt(m); the mean against the width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.progress import progress
from ce_keras.reproduce.fig2 import circle
from ce_keras.reproduce.plots import log_axis
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.statistics import log_slope, mean_and_error, standard_deviation
from ce_keras.reproduce.store import Points
from ce_keras.variance.closed_form import infinite_width_kernel, relative_variance
from ce_keras.variance.samplers import generator, stack_kernels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Lemma 1: the spread of the ensemble's kernel"

# Angles between the two inputs of an entry of the kernel, in degrees and radians.
_ANGLES = {"0": 0.0, "90": np.pi / 2, "180": np.pi}


class Settings(NamedTuple):
    """The settings.

    Attributes:
        depth: number of weight matrices (L).
        width: width of every hidden layer of a path.
        paths: numbers of paths of the ensembles.
        ensembles: number of ensembles drawn for each number of paths.
        widths: widths at which the mean is measured.
        draws: number of networks drawn for each width.
    """

    depth: int = 4
    width: int = 1000
    paths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    ensembles: int = 500
    widths: tuple[int, ...] = (3, 10, 30, 100, 300, 1000)
    draws: int = 40_000


SCALES: dict[Scale, Settings] = {
    "small": Settings(width=100, widths=(3, 10, 30, 100, 300), draws=10_000),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Measure the spread against the number of paths, and the mean against the width."""
    x = circle(np.array(list(_ANGLES.values())))
    limit = infinite_width_kernel(x[:1], x, settings.depth)[0]
    hidden = settings.depth - 1
    seeds = generator(seed).spawn(len(settings.paths) + len(settings.widths))

    def ensembles(m: int, rng: np.random.Generator) -> list[tuple[float, float]]:
        # New networks for every size: the points of the slope are independent.
        widths, draws = [settings.width] * hidden, settings.ensembles * m
        kernels = stack_kernels(x, widths, draws, seed=rng)[:, 0]
        means = kernels.reshape(settings.ensembles, m, -1).mean(1) / limit
        return [standard_deviation(entry) for entry in means.T]

    def networks(n: int, rng: np.random.Generator) -> list[tuple[float, float]]:
        kernels = stack_kernels(x, [n] * hidden, settings.draws, seed=rng)[:, 0] / limit
        return [mean_and_error(entry) for entry in kernels.T]

    spread, means = [], []
    with progress(total=len(seeds), desc="lemma1", delay=1) as bar:
        for m, rng in zip(settings.paths, seeds, strict=False):
            spread.append(points(f"paths {m}", ensembles, m, rng))
            bar.update()
        for n, rng in zip(settings.widths, seeds[len(settings.paths) :], strict=True):
            means.append(points(f"width {n}", networks, n, rng))
            bar.update()
    exact = relative_variance(np.full(hidden, settings.width))
    return {"spread": spread, "means": means, "exact": float(np.sqrt(exact))}


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare slopes with -1/2, and means with the infinitely wide network's kernel.

    The spread of one path is compared with our own exact formula: the paper has no figure for it.
    """
    settings, spread = data["settings"], np.array(data["spread"])
    checks = []
    for entry, angle in enumerate(_ANGLES):
        slope, error = log_slope(settings["paths"], spread[:, entry, 0], spread[:, entry, 1])
        name = f"slope of log spread on log m, inputs {angle}° apart"
        checks.append(Check.within(name, -0.5, slope, error))
    one, error = spread[0, 0]
    ours = f"{one:.3f} ± {error:.3f} (exact formula: {data['exact']:.4f})"
    checks.append(Check("relative spread of one path on the diagonal", None, ours, None))
    for n, means in zip(settings["widths"], data["means"], strict=True):
        for (mean, error), angle in zip(means, _ANGLES, strict=True):
            name = f"mean over infinitely wide, n = {n}, {angle}°"
            checks.append(Check.within(name, 1.0, mean, error))
    return checks


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    settings = data["settings"]
    slopes = [check for check in compare(data)[: len(_ANGLES)] if check.agrees]
    return (
        f"The spread falls as 1/sqrt(m) in {len(slopes)} of {len(_ANGLES)} entries of the kernel; "
        f"the mean depends on the width off the diagonal, most at n = {min(settings['widths'])}."
    )


def say(data: dict[str, Any]) -> str:
    """Return how the mean depends on the width."""
    settings = data["settings"]
    opposite = {n: row[2] for n, row in zip(settings["widths"], data["means"], strict=True)}
    told = ", ".join(
        f"{100 * (mean - 1):+.1f} ± {100 * error:.1f} % at n = {n}"
        for n, (mean, error) in opposite.items()
    )
    return (
        f"The spread of K over ensembles of paths with n = {settings['width']} falls as 1/sqrt(m), "
        "on the diagonal and off it. The mean depends little on the width, but it does: on the "
        "diagonal not at all (the theory is exact there), for two opposite inputs it differs from "
        f"the infinitely wide network's by {told}. The paper says little to no dependence, and "
        "drew n = 1000."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the spread against m, and the mean against the width."""
    left, right = figure.subplots(1, 2)
    settings = data["settings"]
    spread, means = np.array(data["spread"]), np.array(data["means"])
    for entry, angle in enumerate(_ANGLES):
        label = f"{angle}° apart"
        style: dict[str, Any] = {"fmt": "o-", "ms": 4, "lw": 1, "capsize": 2, "label": label}
        left.errorbar(settings["paths"], spread[:, entry, 0], 2 * spread[:, entry, 1], **style)
        right.errorbar(settings["widths"], means[:, entry, 0], 2 * means[:, entry, 1], **style)
    m = np.array(settings["paths"])
    left.plot(m, spread[0, 0, 0] / np.sqrt(m), "--", color="black", lw=1, label="1/√m")
    left.set_yscale("log")
    left.set_ylabel("spread of K over its mean")
    right.axhline(1, color="black", lw=1, ls="--")
    right.set_ylabel("mean of K over the infinitely wide network's")
    log_axis(left, settings["paths"], "paths m")
    log_axis(right, settings["widths"], "width n")
    for ax in (left, right):
        ax.legend(frameon=False)
