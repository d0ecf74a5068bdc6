"""Figure 3: the primal and dual curves of a fully connected network. Deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ce_keras.geometry import baseline
from ce_keras.optimum import search
from ce_keras.problem import MODES
from ce_keras.reproduce.protocol import EXACT, Check, NoSettings
from ce_keras.reproduce.store import Points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 3: primal and dual curves of a fully connected network"

SCALES = EXACT

_LAWS: dict[str, Any] = {"fitted": None, "closed_form": "closed_form"}


def measure(settings: NoSettings, seed: int, points: Points) -> dict[str, Any]:
    """Return the optimum of both curves, with the figure's alpha and with the exact variance."""
    del settings, seed, points
    return {
        law: {
            mode: {
                "width": solution.design.width,
                "m": solution.multiplicity,
                "rho": solution.unrounded_rho,
                "at_48": _at(solution, 48),
            }
            for mode in MODES
            for solution in [search("figure3", mode, alpha=alpha, tolerance=0)]
        }
        for law, alpha in _LAWS.items()
    }


def _at(solution: Any, width: int) -> dict[str, float]:
    """Return the unrounded cardinality and the efficiency at one width of a curve."""
    (index,) = (solution.curve.width == width).nonzero()[0]
    return {"m": float(solution.curve.m[index]), "rho": float(solution.curve.rho[index])}


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare with the numbers of the caption."""
    primal, dual = data["fitted"]["primal"], data["fitted"]["dual"]
    return [
        Check.same("optimal width n", 48, primal["width"]),
        Check.rounded("primal m(48)", "30", primal["m"], digits=1),
        Check.rounded("dual m(48)", "12", dual["m"], digits=1),
        Check.rounded("efficiency rho(48)", "2.45", dual["rho"], digits=1),
    ]


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    dual = data["fitted"]["dual"]
    return (
        f"The caption's width and its two cardinalities come out; its efficiency, 2.45, is "
        f"{dual['rho']:.2f} here."
    )


def say(data: dict[str, Any]) -> str:
    """Return the optimum by either law."""
    exact = data["closed_form"]["dual"]
    return (
        f"With alpha = {baseline('figure3').module.alpha}, the value that the caption's numbers "
        "imply, the minimum is at the width of the caption. With the exact variance of this "
        f"network and nothing fitted, the minimum is at n = {exact['width']} instead; at n = 48 "
        f"m = {data['closed_form']['primal']['at_48']['m']:.1f} and "
        f"{exact['at_48']['m']:.1f}, and rho = {exact['at_48']['rho']:.2f}."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw both curves, by both laws."""
    del data  # The curves are formulas.
    axes = figure.subplots(1, 2)
    for ax, mode in zip(axes, MODES, strict=True):
        search("figure3", mode, tolerance=0).plot(ax)
        exact = search("figure3", mode, tolerance=0, alpha="closed_form").curve
        ax.plot(exact.width, exact.objective, "--", color="black", lw=1, label="exact variance")
        ax.lines[0].set_label(f"alpha = {baseline('figure3').module.alpha}")
        ax.axvline(48, color="grey", lw=0.8, ls=":", label="the paper's n = 48")
        ax.legend(frameon=False)
