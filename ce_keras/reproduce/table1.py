"""Table 1: the designs of ResNeXt-29, counted; and the errors of designs trained here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.geometry import Design, baseline
from ce_keras.optimum import search
from ce_keras.problem import MODES, Mode
from ce_keras.progress import progress
from ce_keras.reproduce import tables
from ce_keras.reproduce.plots import log_axis, name_point
from ce_keras.reproduce.protocol import Check, Scale
from ce_keras.reproduce.statistics import mean_and_error
from ce_keras.reproduce.store import Points
from ce_keras.training.recipe import read_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Table 1: designs of ResNeXt-29, and a curve that was measured"


class Settings(NamedTuple):
    """The settings.

    Attributes:
        recipe: name of a recipe, as for `ce-keras train`.
        changes: changes to the recipe.
        runs: number of runs of every design.
        widths: widths trained beside the baseline's and the search's own.
    """

    recipe: str = "cifar100"
    changes: dict[str, Any] = {}  # noqa: RUF012  # Never changed.
    runs: int = 10
    widths: tuple[int, ...] = (4, 25, 58)


SCALES: dict[Scale, Settings] = {
    "small": Settings("fashion_mnist", {"data.limit": 2000, "schedule.epochs": 8}, 3, (2, 16, 32)),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Return the rows of the table; train designs on both curves of the recipe's network."""
    errors = read_recipe("cifar100").expected.error
    return {
        "rows": tables.rows("1", errors),
        "answers": tables.answers("1"),
        "trained": _trained(settings, seed, points),
    }


def _trained(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    network = read_recipe(settings.recipe).model.name
    runs: dict[str, Any] = {}
    for mode in MODES:
        pick = search(network, mode).design
        base = baseline(network).width
        widths = sorted({*settings.widths, pick.width, base})
        curve = search(network, mode, widths=widths).curve
        runs[mode] = {"pick": str(pick), "designs": tables.designs_on(curve)}
    chosen = [row for mode in MODES for row in runs[mode]["designs"]]
    with points.folder() as folder, progress(total=len(chosen), desc="table1", delay=1) as bar:
        for row in chosen:
            name = row["design"]
            row["errors"] = points(name, _errors, settings, seed, name, folder)
            bar.update()
    return {"network": network, **runs}


def _errors(settings: Settings, seed: int, design: str, folder: Path) -> list[float]:
    """Return the test errors of all runs of a design; finished runs are not trained again."""
    from ce_keras.training import train

    m, n = Design.parse(design)
    changes = {
        **{key: str(value) for key, value in settings.changes.items()},
        "model.cardinality": str(m),
        "model.width": str(n),
    }
    recipe = read_recipe(settings.recipe, changes)
    found = train(recipe, folder / design, seed=seed, runs=settings.runs)
    return found["errors"] if settings.runs > 1 else [found["error"]]


class Distance(NamedTuple):
    """Difference in test error between the search's design and another.

    Attributes:
        pick: the search's design.
        other: on the primal curve, the design with the lowest error; for the dual, the baseline.
        points: mean error of the pick less the other's, in percentage points.
        error: standard error of the difference.
        pick_error: mean error of the pick.
        other_error: mean error of the other.
        rho: parameters of the other over those of the pick.
    """

    pick: str
    other: str
    points: float
    error: float
    pick_error: float
    other_error: float
    rho: float


def summarize(data: dict[str, Any]) -> dict[Mode, Distance]:
    """Return the difference between the search's design and another, for both curves."""
    return {mode: _distance(data, mode) for mode in MODES}


def _distance(data: dict[str, Any], mode: Mode) -> Distance:
    curve = data["trained"][mode]
    errors = {row["design"]: np.array(row["errors"]) for row in curve["designs"]}
    params = {row["design"]: row["params"] for row in curve["designs"]}
    pick, baseline_design = curve["pick"], curve["designs"][-1]["design"]
    best = min(errors, key=lambda design: errors[design].mean())
    other = best if mode == "primal" else baseline_design
    # Paired: runs of the same number have the same seed.
    pairs = errors[pick] - errors[other]
    points, error = (float(pairs.mean()), float("inf")) if len(pairs) < 2 else mean_and_error(pairs)
    means = float(errors[pick].mean()), float(errors[other].mean())
    return Distance(pick, other, points, error, *means, params[other] / params[pick])


def compare(data: dict[str, Any]) -> list[Check]:
    """Compare the rows; show the trained designs' difference, for which the paper has no figure."""
    checks = tables.compare(data)
    for mode in MODES:
        found = data["summary"][mode]
        other = "the best of the curve" if mode == "primal" else "the baseline"
        checks.append(
            Check(
                f"{data['trained']['network']}, {mode}: error of {found.pick} above {other}, "
                f"{found.other}",
                None,
                f"{found.points:.2f} ± {found.error:.2f} points",
                None,
            )
        )
    return checks


def verdict(data: dict[str, Any]) -> str:
    """Return the outcome in one sentence."""
    dual, checks = data["summary"]["dual"], tables.compare(data)
    agree = sum(check.agrees is True for check in checks)
    total = sum(check.paper is not None for check in checks)
    return (
        f"{agree} of {total} designs, parameter counts and rho come out as printed; trained here, "
        f"the dual has {dual.rho:.2f} times fewer parameters than the baseline and an error "
        f"{dual.points:+.2f} ± {dual.error:.2f} points from it."
    )


def say(data: dict[str, Any]) -> str:
    """Return what was trained, and the errors."""
    settings, trained = data["settings"], data["trained"]
    changes = ", ".join(f"{key} = {value}" for key, value in settings["changes"].items())
    primal, dual = (data["summary"][mode] for mode in MODES)
    return (
        "Designs, parameters and rho are counted. Errors are of "
        f"{trained['network']} by the recipe {settings['recipe']}"
        f"{f' with {changes}' if changes else ''}, {settings['runs']} runs of each design: "
        f"the primal pick {primal.pick} has {primal.pick_error:.2f} % and the best of its curve, "
        f"{primal.other}, {primal.other_error:.2f} % ({primal.points:.2f} ± {primal.error:.2f} "
        f"points apart); the dual pick {dual.pick}, with {dual.rho:.2f} times fewer parameters, "
        f"has {dual.pick_error:.2f} % and the baseline {dual.other} {dual.other_error:.2f} % "
        f"({dual.points:.2f} ± {dual.error:.2f} points apart). The best of several noisy means is "
        "lower than it should be, so a design within three standard errors of it is as good."
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the paper's errors, and the measured curves."""
    axes = figure.subplots(1, 3)
    tables.draw_errors(data, "resnext29", axes[0])
    axes[0].set_ylabel("the paper's error on CIFAR-100 in %")
    axes[0].legend(frameon=False, fontsize=8)
    for ax, mode in zip(axes[1:], MODES, strict=True):
        curve = data["trained"][mode]
        for row in curve["designs"]:
            mean, error = np.mean(row["errors"]), 0.0
            if len(row["errors"]) > 1:
                mean, error = mean_and_error(row["errors"])
            color = "tab:red" if row["design"] == curve["pick"] else "black"
            ax.errorbar(row["width"], mean, error, fmt="o", color=color, capsize=3)
            name_point(ax, row["design"], row["width"], float(mean), color=color)
        log_axis(ax, [row["width"] for row in curve["designs"]], "width n of a path")
        ax.margins(x=0.2)
        ax.set_title(f"{data['trained']['network']}, {mode} (red: the search's)", fontsize=10)
    axes[1].set_ylabel("measured test error in %")
