"""Figure 6: the primal and dual curves of ResNeXt-29, and the paper's errors along them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.designs import PUBLISHED
from ce_keras.geometry import Design
from ce_keras.optimum import search
from ce_keras.problem import MODES, Mode
from ce_keras.reproduce.protocol import CORRELATION, EXACT, Check, NoSettings
from ce_keras.reproduce.statistics import rank_correlation
from ce_keras.reproduce.store import Points
from ce_keras.solution import Solution
from ce_keras.training.recipe import read_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 6: primal and dual curves of ResNeXt-29"

_BASELINE = "resnext29"

SCALES = EXACT


def measure(settings: NoSettings, seed: int, points: Points) -> dict[str, Any]:
    """Return the optimum of both curves, and the positions of the paper's networks on them."""
    del settings, seed, points
    errors = read_recipe("cifar100").expected.error
    data: dict[str, Any] = {}
    for mode in MODES:
        solution = search(_BASELINE, mode)
        curve = solution.curve
        designs = [
            row.design
            for row in PUBLISHED
            if row.baseline == _BASELINE
            and row.mode in (mode, "baseline", *(("resnext",) if mode == "primal" else ()))
        ]
        at_ten = _exact(mode, widths=[10])
        data[mode] = {
            "exact": {"best_width": at_ten.best_width, "design": str(at_ten.design)},
            "design": str(solution.design),
            "m": solution.multiplicity,
            "rho": solution.rho,
            "unrounded_rho": solution.unrounded_rho,
            "bare": search(_BASELINE, mode, tolerance=0).design.width,
            "near": [design.width for design in solution.near_optimal()],
            "networks": [
                {
                    "design": str(design),
                    "objective": float(curve.objective[curve.width == design.width][0]),
                    "error": errors[f"{_BASELINE}_{design}"],
                }
                for design in designs
            ],
        }
    return data


def _exact(mode: Mode, **options: Any) -> Solution:
    return search(_BASELINE, mode, alpha="closed_form", correlation=CORRELATION, **options)


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare with the numbers of the text and the caption."""
    primal, dual = data["primal"], data["dual"]
    columns = ([row[name] for row in primal["networks"]] for name in ("objective", "error"))
    order = round(rank_correlation(*columns), 6)
    return [
        Check.same("primal design", "37x10d", primal["design"]),
        Check.same("dual design", "10x10d", dual["design"]),
        Check.rounded("dual m before rounding", "10", dual["m"]),
        Check.rounded("rho of the dual network, as built", "3.3", dual["rho"]),
        Check.same("order of the paper's errors along the primal curve", 1.0, order),
    ]


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    return (
        f"The search gives the paper's designs, {data['primal']['design']} (primal) and "
        f"{data['dual']['design']} (dual, {data['dual']['rho']:.2f} times fewer parameters)."
    )


def say(data: dict[str, Any]) -> str:
    """Return how flat the minimum is."""
    near = data["primal"]["near"]
    return (
        f"The curves are flat at their optimum: the bare minimum is at n = {data['primal']['bare']}"
        f", every width from {near[0]} to {near[-1]} is within 2 % of it, and the paper's width is "
        "the widest of those, which is what the search takes. For one block and unrounded m the "
        f"efficiency of the dual is {data['dual']['unrounded_rho']:.2f}; for the network as built "
        f"it is {data['dual']['rho']:.2f}. The errors are the paper's, of CIFAR-100: a network "
        "with a smaller predicted variance has the smaller error in each pair of the "
        f"{len(data['primal']['networks'])} on the primal curve. The dashed curves are the exact "
        f"law's at a correlation of {CORRELATION:g}, on which the paper's designs are marked: the "
        f"best width is {data['primal']['exact']['best_width']:.1f}, and the dual of width 10 is "
        f"{data['dual']['exact']['design']}."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw both curves, with the paper's errors on a second axis."""
    for ax, mode in zip(figure.subplots(1, 2), MODES, strict=True):
        search(_BASELINE, mode).plot(ax)
        networks = data[mode]["networks"]
        widths = [Design.parse(row["design"]).width for row in networks]
        exact = _exact(mode, tolerance=0).curve
        ax.plot(exact.width, exact.objective, "--", color="black", lw=1, label="exact law")
        tested = np.interp(widths, exact.width, exact.objective)
        ax.plot(widths, tested, "o", color="black", ms=4)
        ax.legend(frameon=False)
        error = ax.twinx()
        error.plot(widths, [row["error"] for row in networks], "s", color="tab:blue")
        error.set_ylabel("the paper's error on CIFAR-100 in %", color="tab:blue")
        error.margins(y=0.3)
