"""Elements that several pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def log_axis(ax: Axes, ticks: Sequence[int], label: str = "") -> None:
    """Make the x-axis logarithmic, with these numbers as its only ticks."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(label)


def name_point(ax: Axes, name: str, x: float, y: float, **options: Any) -> None:
    """Write a name beside a point."""
    ax.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7, **options)
