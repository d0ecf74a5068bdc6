"""Helpers for figures: matplotlib is imported here and nowhere else, and only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ce_keras.checks import brief
from ce_keras.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The colour of curves and their marks.
COLOR = "tab:red"


class Drawable(Protocol):
    """An object that draws itself, such as a `Solution` or an `AlphaFit`."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it, and return the axes."""


def axes_for(ax: Any) -> Axes:
    """Return the axes that are given, or those of a new figure for `None`."""
    if ax is None:
        from matplotlib import pyplot

        return pyplot.figure(figsize=(6.4, 4.2), layout="constrained").add_subplot()
    if not hasattr(ax, "get_figure"):
        raise ValueError(f"ax: got {brief(ax)}; it must be matplotlib's axes")
    return ax


def mark(ax: Axes, x: float, y: float, label: str, offset: float) -> None:
    """Draw a dot with a label `offset` points above it."""
    ax.plot(x, y, "o", color=COLOR, ms=7)
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
    ax.annotate(label, (x, y), xytext=(0, offset), weight="bold", color=COLOR, **place)


def save_curves(drawn: Sequence[Drawable], path: str | Path) -> None:
    """Draw searches or fits side by side into a file, whose suffix decides the format."""
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
    """Draw the loss and the test error of a run by epoch into a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in history]
    curves = {
        "training loss (smoothed)": ["loss"],
        "test error in %": ["error", "top5_error"],
    }
    for ax, (label, names) in zip(figure.subplots(1, 2), curves.items(), strict=True):
        for name in names:
            ax.plot(epochs, [row[name] for row in history], marker=".", label=name)
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.set_ylim(bottom=0)
    figure.axes[1].legend(["top-1", "top-5"], frameon=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=150)
