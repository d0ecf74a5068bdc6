"""What Tables 1 and 2 share: designs, parameters and rho, row by row. Exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ce_keras.designs import PUBLISHED
from ce_keras.geometry import baseline
from ce_keras.optimum import search
from ce_keras.reproduce.result import MODES, Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rows(table: str, errors: dict[str, float]) -> list[dict[str, Any]]:
    """Every row of a table, with what the search answers for its baseline and width."""
    found = []
    for row in PUBLISHED:
        if not row.table.startswith(table):
            continue
        network = baseline(row.baseline)
        params = network.params(*row.design)
        derived = ""
        if row.mode == "primal" or row.mode == "dual":  # noqa: PLR1714  # For the type checker.
            # The paper's width is given: the question is what cardinality belongs to it.
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
    """What the search answers for every baseline of a table, if it may choose the width."""
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


def compare(data: dict[str, Any]) -> list[Check]:
    """Designs, parameters and rho as printed, and ours."""
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
    for answer in data["answers"]:
        printed = [
            row["design"]
            for row in data["rows"]
            if (row["baseline"], row["mode"]) == (answer["baseline"], answer["mode"])
        ]
        checks.append(
            Check(
                f"{answer['baseline']}: {answer['mode']} of the search's own choice",
                " or ".join(printed) or "none printed",
                answer["design"],
                not printed or answer["design"] in printed,
            )
        )
    return checks


def _millions(name: str, printed: float, params: int) -> Check:
    digits = len(f"{printed}".partition(".")[2])
    agrees = abs(params / 1e6 - printed) <= 0.5 * 10**-digits + 1e-9
    return Check(f"{name}: parameters", f"{printed:g}M", f"{params:,}", agrees)


def draw_errors(data: dict[str, Any], network: str, ax: Axes) -> None:
    """The paper's errors of a network's designs against their parameters."""
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
            ax.annotate(
                row["design"],
                (row["params"] / 1e6, row["error"]),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=7,
            )
    ax.set_xlabel("parameters in millions")
    ax.set_title(network, fontsize=11)
    ax.margins(x=0.15, y=0.1)
