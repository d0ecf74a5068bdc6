"""Draw the pictures of paths on the site's first pages and in the README.

python docs/drawings.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

from ce_keras.geometry import RESNEXTS, Design

IMAGES = Path(__file__).parent / "images"
WIDE, PATHS, OTHER = "#b04a3a", "#2f6f9f", "#777777"
# One block keeps its picture whatever the viewer's fonts are, and is the same file every time.
mpl.rcParams |= {"svg.fonttype": "path", "svg.hashsalt": "ce_keras", "font.family": "DejaVu Sans"}


def main() -> None:
    """Write `paths.svg` and `network.svg`."""
    for name, draw in {"paths": draw_block, "network": draw_network}.items():
        figure = draw()
        path = IMAGES / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        pyplot.close(figure)


def draw_block() -> Any:
    """Draw a bottleneck block of ResNeXt-29 as one wide path, and as ten narrow ones."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9.4, 4.3), width_ratios=(1, 1.9))
    _block(axes[0], "1x128d: one wide path", Design(1, 128), WIDE)
    _block(axes[1], "10x10d: ten narrow paths", Design(10, 10), PATHS)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.98, bottom=0.01, wspace=0.03)
    return figure


def _block(axes: Any, title: str, design: Design, color: str) -> None:
    """Draw a block: 256 channels, paths of 1x1, 3x3 and 1x1 convolutions, their sum."""
    m, n = design
    shown = [0, 1, None, m - 1] if m > 1 else [0]  # None: dots for the paths between.
    step = 1.45
    middle = step * (len(shown) - 1) / 2
    for place, path in enumerate(shown):
        x = place * step
        if path is None:
            axes.text(x, 2.0, ". . .", ha="center", va="center", fontsize=15, color=color)
            continue
        for y, text in ((3.0, f"1x1, {n}"), (2.0, f"3x3, {n}"), (1.0, "1x1, 256")):
            _box(axes, (x, y), 1.2 if m > 1 else 2.2, text, color)
        for y in (2.72, 1.72):
            axes.annotate("", (x, y - 0.44), (x, y), arrowprops={"arrowstyle": "->"})
        for start, end in (((middle, 3.75), (x, 3.28)), ((x, 0.72), (middle, 0.3))):
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": OTHER})
    axes.text(middle, 3.82, "256 channels", ha="center", va="bottom", fontsize=9, color=OTHER)
    total = "256 channels" if m == 1 else "sum of the paths: 256 channels"
    axes.text(middle, 0.22, total, ha="center", va="top", fontsize=9, color=OTHER)
    axes.text(middle, 4.4, title, ha="center", va="center", fontsize=12, color=color)
    note = "m = 1 path, n = 128 channels" if m == 1 else "m = 10 paths, n = 10 channels in each"
    params = f"{m * (512 * n + 9 * n * n):,} weights"
    axes.text(middle, -0.3, f"{note}\n{params}", ha="center", va="top", fontsize=9.5)
    axes.set_xlim(middle - 2.0 if m == 1 else -0.8, middle + 2.0 if m == 1 else 3 * step + 0.8)
    axes.set_ylim(-1.0, 4.75)
    axes.axis("off")


def _box(axes: Any, center: tuple[float, float], width: float, text: str, color: str) -> None:
    x, y = center
    patch = FancyBboxPatch(
        (x - width / 2, y - 0.22),
        width,
        0.44,
        boxstyle="round,pad=0.03",
        facecolor=color + "22",
        edgecolor=color,
    )
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=9.5)


def draw_network() -> Any:
    """Draw every path of ResNeXt-29 and of its dual: a bar's height is the path's width."""
    figure, axes = pyplot.subplots(2, 1, figsize=(9.4, 5.6))
    _network(axes[0], "the baseline, 1x128d", Design(1, 128), WIDE)
    _network(axes[1], "its dual, 10x10d", Design(10, 10), PATHS)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01, hspace=0.02)
    return figure


def _network(axes: Any, title: str, design: Design, color: str) -> None:
    shape = RESNEXTS["resnext29"]
    gap = 12
    x = 1.0
    axes.axhline(0, color=OTHER, lw=1, zorder=0)
    _column(axes, x - 1.0, [shape.stem], gap, OTHER)
    for stage, blocks in enumerate(shape.blocks):
        width = design.width * 2**stage
        for _ in range(blocks):
            _column(axes, x, [width] * design.cardinality, gap, color)
            x += 1.0
        paths = f"{design.cardinality} path{'s' if design.cardinality > 1 else ''} of {width}"
        note = f"stage {stage + 1}: {paths}"
        axes.text(x - 2.0, -300, note, ha="center", va="center", fontsize=9.5)
        x += 0.35
    _column(axes, x, [shape.classes], gap, OTHER)
    axes.text(0, -75, "stem", ha="center", fontsize=8.5, color=OTHER)
    axes.text(x, -75, "classes", ha="center", fontsize=8.5, color=OTHER)
    axes.text(-0.4, 285, title, fontsize=12, color=color, va="center")
    axes.set_xlim(-0.5, x + 0.5)
    axes.set_ylim(-335, 330)
    axes.axis("off")


def _column(axes: Any, x: float, widths: list[int], gap: int, color: str) -> None:
    """Draw paths one above the other, centred at zero."""
    low = -(sum(widths) + gap * (len(widths) - 1)) / 2
    for width in widths:
        axes.bar(x, width, 0.5, low, color=color)
        low += width + gap


if __name__ == "__main__":
    main()
