"""Rows of Tables 1 and 2: designs, parameters and rho."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ce_keras.designs import PUBLISHED
from ce_keras.geometry import Design, baseline
from ce_keras.optimum import search
from ce_keras.problem import MODES
from ce_keras.reproduce.plots import name_point
from ce_keras.reproduce.protocol import Check
from ce_keras.solution import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rows(table: str, errors: dict[str, float]) -> list[dict[str, Any]]:
    """Return every row of a table, with the search's answer for its baseline and width."""
    found = []
    for row in PUBLISHED:
        if not row.table.startswith(table):
            continue
        network = baseline(row.baseline)
        params = network.params(*row.design)
        derived = ""
        if row.mode == "primal" or row.mode == "dual":  # noqa: PLR1714  # For the type checker.
            # The width is the paper's: only the cardinality is searched.
            solution = search(row.baseline, row.mode, widths=[row.design.width])
            derived = str(solution.design)
        found.append(
            {
                "network": row.network,
                "baseline": row.baseline,
                "mode": row.mode,
                "design": str(row.design),
                "derived": derived,
                "millions": row.millions,
                "params": int(params),
                "rho": row.rho,
                "our_rho": network.params(1, network.width) / params,
                "error": errors.get(f"{row.network}_{row.design}"),
            }
        )
    return found


def answers(table: str) -> list[dict[str, str]]:
    """Return the search's answer for every baseline of a table, if it may choose the width."""
    return [
        {
            "baseline": name,
            "mode": mode,
            "design": str(solution.design),
            "near": ", ".join(map(str, solution.near_optimal())),
        }
        for name in dict.fromkeys(row.baseline for row in PUBLISHED if row.table.startswith(table))
        for mode in MODES
        for solution in [search(name, mode)]
    ]


def designs_on(curve: Curve) -> list[dict[str, Any]]:
    """Return every design of a curve, with its variance and parameters as built."""
    columns = curve.width, curve.cardinality, curve.m, curve.variance, curve.parameters
    return [
        {
            "design": str(Design(int(m), int(n))),
            "width": int(n),
            # The curve's variance is at the real-valued cardinality.
            "variance": float(variance * real / m),
            "params": int(params),
        }
        for n, m, real, variance, params in zip(*columns, strict=True)
    ]


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare designs, parameters and rho with the printed ones."""
    checks = []
    for row in data["rows"]:
        name = f"{row['network']} {row['design']}"
        if row["derived"]:
            checks.append(
                Check.same(f"{name}: {row['mode']} design", row["design"], row["derived"])
            )
        checks.append(_millions(name, row["millions"], row["params"]))
        if row["rho"] is not None:
            checks.append(Check.rounded(f"{name}: rho", f"{row['rho']:.1f}", row["our_rho"]))
    for answer, printed in _answers_and_printed(data):
        checks.append(
            Check(
                f"{answer['baseline']}: {answer['mode']} of the search's own choice",
                " or ".join(printed) or None,
                answer["design"],
                answer["design"] in printed if printed else None,
            )
        )
    return checks


def choices_printed(data: dict[str, Any]) -> str:
    """Return how many of the search's own choices are printed in the table, as a clause."""
    found = [
        answer["design"] in printed for answer, printed in _answers_and_printed(data) if printed
    ]
    return f"it takes a printed design in {sum(found)} of {len(found)} cases"


def _answers_and_printed(data: dict[str, Any]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Give every answer of the search, with the designs printed for its baseline and mode."""
    for answer in data["answers"]:
        key = answer["baseline"], answer["mode"]
        rows = data["rows"]
        yield answer, [row["design"] for row in rows if (row["baseline"], row["mode"]) == key]


def _millions(name: str, printed: float, params: int) -> Check:
    digits = len(f"{printed}".partition(".")[2])
    agrees = abs(params / 1e6 - printed) <= 0.5 * 10**-digits + 1e-9
    return Check(f"{name}: parameters", f"{printed:g}M", f"{params:,}", agrees)


def draw_errors(data: dict[str, Any], network: str, ax: Axes) -> None:
    """Draw the paper's errors of a network's designs against their parameters."""
    colors = {"baseline": "black", "resnext": "grey", "primal": "tab:red", "dual": "tab:blue"}
    for mode, color in colors.items():
        shown = [
            row
            for row in data["rows"]
            if (row["network"], row["mode"]) == (network, mode) and row["error"] is not None
        ]
        ax.plot(
            [row["params"] / 1e6 for row in shown],
            [row["error"] for row in shown],
            "o",
            color=color,
            label=mode,
        )
        for row in shown:
            name_point(ax, row["design"], row["params"] / 1e6, row["error"])
    ax.set_xlabel("parameters in millions")
    ax.set_title(network, fontsize=11)
    ax.margins(x=0.15, y=0.1)
