"""The pictures: matplotlib is imported here and nowhere else, and only when one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.checks import brief
from ce_keras.files import replacing
from ce_keras.geometry import Design

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ce_keras.solution import Solution
    from ce_keras.variance.fit import AlphaFit

_COLOR = "tab:red"
_OBJECTIVES = {
    "primal": "Var(K)/E[K]² at the baseline's size",
    "dual": "efficiency ρ at the baseline's Var(K)",
}
_TICKS = [tens * n for tens in (1, 10, 100, 1000) for n in (1, 2, 5)]


def objective_curve(solution: Solution, ax: Axes | None = None) -> Axes:
    """Draw a search's objective against width (Fig. 3), marking what it chose and why.

    Args:
        solution: what to draw.
        ax: where; a new figure if not given.

    Returns:
        The axes drawn on.
    """
    _check_axes(ax)
    ax = _new_axes() if ax is None else ax
    width, objective = solution.curve.width, solution.curve.objective
    baseline, mode = solution.baseline, solution.mode
    ax.plot(width, objective, color=_COLOR, marker="." if len(width) < 20 else "")
    shaded = ""
    if solution.tolerance > 0:
        near = [candidate.width for candidate in solution.near_optimal()]
        ax.axvspan(min(near) - 0.5, max(near) + 0.5, color=_COLOR, alpha=0.15, lw=0)
        shaded = f"  (shaded: within {solution.tolerance:.2g} of the optimum)"
    if solution.best_width is not None:
        label = f"best width {solution.best_width:.1f}"
        ax.axvline(solution.best_width, color="gray", lw=1, ls="--", label=label)
        ax.legend(frameon=False)
    away = 14 if mode == "dual" else -18
    _mark(ax, solution.design, objective[np.searchsorted(width, solution.design.width)], away)
    if width[-1] == baseline.width:
        _mark(ax, Design(1, baseline.width), objective[-1], -away)

    ax.set_xscale("log")
    if objective.max() > 30 * objective.min() > 0 and mode == "primal":
        ax.set_yscale("log")
    ticks = [n for n in _TICKS if width[0] <= n <= width[-1]] or [int(n) for n in width]
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.margins(x=0.08, y=0.2)
    ax.set_xlabel(f"width n of a path{shaded}")
    ax.set_ylabel(_OBJECTIVES[mode])
    ax.set_title(f"{mode}, baseline {baseline.name} 1x{baseline.width}d", fontsize=11)
    return ax


def alpha_fit(fit: AlphaFit, ax: Axes | None = None) -> Axes:
    """Draw the points that alpha was fitted to, with two standard errors, and the line.

    Args:
        fit: what to draw.
        ax: where; a new figure if not given.

    Returns:
        The axes drawn on.
    """
    _check_axes(ax)
    ax = _new_axes() if ax is None else ax
    s = fit.inverse_fan_in
    ax.errorbar(s, fit.log_ratio, 2 * fit.log_ratio_error, fmt="o", ms=4, color="black", capsize=3)
    ends = np.array([0, s.max()])
    label = f"alpha = {fit.alpha:.3f} ± {fit.alpha_error:.3f}"
    ax.plot(ends, fit.intercept + fit.alpha * ends, color=_COLOR, label=label)
    ax.legend(loc="upper left", frameon=False)
    ax.set_xlabel("S, the sum of 1/fan-in")
    ax.set_ylabel("log(E[K²]/E[K]²)")
    ax.set_title(f"{fit.module}, widths {fit.width[0]} to {fit.width[-1]}", fontsize=11)
    return ax


def _check_axes(ax: Any) -> None:
    if ax is not None and not hasattr(ax, "get_figure"):
        raise ValueError(f"ax: got {brief(ax)}; it must be matplotlib's axes")


def _new_axes() -> Axes:
    from matplotlib import pyplot

    return pyplot.figure(figsize=(6.4, 4.2), layout="constrained").add_subplot()


def _mark(ax: Axes, design: Design, objective: float, away: int) -> None:
    ax.plot(design.width, objective, "o", color=_COLOR, ms=7)
    ax.annotate(
        str(design),
        (design.width, objective),
        xytext=(0, away),
        textcoords="offset points",
        ha="center",
        va="center",
        weight="bold",
        color=_COLOR,
    )


def save_curves(drawn: Sequence[Solution | AlphaFit], path: str | Path) -> None:
    """Draw searches or fits side by side and save the picture; the suffix decides the format.

    Folders that are missing are made, and the picture is whole or not there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(drawn), 4.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for each, ax in zip(drawn, axes, strict=True):
        each.plot(ax)
    with replacing(path) as part:
        figure.savefig(part)


def save_learning_curves(history: Sequence[dict[str, float]], path: str | Path) -> None:
    """Draw the loss and the test error of a run by epoch, into a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for ax, names, label in zip(
        figure.subplots(1, 2),
        [["loss"], ["error", "top5_error"]],
        ["training loss (smoothed)", "test error in %"],
        strict=True,
    ):
        for name in names:
            ax.plot(epochs, [row[name] for row in history], marker=".", label=name)
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.set_ylim(bottom=0)
    figure.axes[1].legend(["top-1", "top-5"], frameon=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
