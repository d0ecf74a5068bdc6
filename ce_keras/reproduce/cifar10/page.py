"""The page: a table of the claims, one of the designs, and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ce_keras.reproduce.cifar10.analysis import ERRORS, by_design
from ce_keras.reproduce.cifar10.designs import BASELINE, CONTRASTS, DUAL, PRIMAL, predictors
from ce_keras.reproduce.cifar10.trainings import TIMED_IMAGES, TIMES
from ce_keras.reproduce.plots import name_point
from ce_keras.reproduce.protocol import Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def compare(data: dict[str, Any]) -> list[Check]:
    """Return a row for each contrast, and one for each predictor's rank correlation."""
    checks = []
    for regime, found in data["summary"].items():
        for name, row in found["correlations"].items():
            low, high = row["interval"]
            told = f"{row['value']:.2f} ({low:.2f} to {high:.2f}; p = {row['p']:.4f})"
            claim, agrees = None, None
            if name == "exact variance":
                claim, agrees = "positive", row["value"] > 0 if row["p"] < 0.05 else None
            checks.append(
                Check(f"{regime}: rank correlation of error with {name}", claim, told, agrees)
            )
        for question, a, b, claim in CONTRASTS:
            if (each := found["contrasts"].get((a, b))) is not None:
                agrees = not each.significant if claim == "0" else None
                if claim == "below 0" and each.significant:
                    agrees = each.value < 0
                quantity = f"{regime}: error of {a} minus {b} ({question}), points"
                checks.append(Check(quantity, claim, str(each), agrees))
    return checks


def verdict(data: dict[str, Any]) -> str:
    """Return which quantity predicts the error where images abound and where they are few."""
    return " ".join(f"{sentence}." for sentence in _sentences(data))


def _sentences(data: dict[str, Any]) -> Iterator[str]:
    for regime, found in data["summary"].items():
        rows = found["correlations"]
        if not rows:
            yield f"With {regime}: too few designs for a rank correlation"
            continue
        exact, best = rows["exact variance"], max(rows, key=lambda name: abs(rows[name]["value"]))
        where = f"With {regime} (training errors {_range(found['train'])})"
        if exact["p"] < 0.05:
            yield (
                f"{where} the test error follows the exact variance (rank correlation "
                f"{exact['value']:.2f} over {len(found['errors'])} designs; the best predictor is "
                f"{best}, {rows[best]['value']:.2f})"
            )
        else:
            yield f"{where} it does not ({exact['value']:.2f}); " + (
                f"the best predictor is {best}, {rows[best]['value']:.2f}"
                if rows[best]["p"] < 0.05
                else "nor does anything else predict it"
            )


def _range(errors: dict[str, np.ndarray]) -> str:
    low, high = (f"{end([v.mean() for v in errors.values()]):.1f}" for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


def say(data: dict[str, Any]) -> str:
    """Return what was trained, and what paths buy over a narrower baseline."""
    settings, told = data["settings"], []
    for regime, found in data["summary"].items():
        differences = [f"{a} minus {b} {each}" for (a, b), each in found["contrasts"].items()]
        if differences:
            told.append(f"With {regime}, in points of test error: {', '.join(differences)}.")
    device = f" Trained on {data['device']}." if "device" in data else ""
    if data.get("times"):
        where = data.get("times_on", "the machine that trained")
        device += f" Times are of a step of {TIMED_IMAGES} images on {where}."
    return (
        f"ResNeXt-11 for 32x32 images: {PRIMAL[-1]} to {BASELINE} have equal parameters; "
        + " and ".join(f"{dual} has those of {narrower}" for dual, narrower in DUAL.items())
        + f". {settings['epochs']} epochs of all images with augmentation, or "
        f"{settings['few_epochs']} of {settings['few']:,} without; the designs of a seed see the "
        "same images in the same order, and the last epoch counts. Differences of one seed have "
        "the standard error of the test images only; between trainings the error varies by some "
        f"tenths of a point more.{device} {' '.join(told)}"
    )


_GROUPS = {
    "size of the baseline": ("tab:blue", PRIMAL[1:]),
    "duals": ("tab:green", tuple(DUAL)),
    "baseline and narrower": ("black", (BASELINE, *DUAL.values())),
}


def details(data: dict[str, Any]) -> str:
    """Return a table of all designs: parameters, times of 64 images, and errors."""
    regimes = list(dict.fromkeys(run["regime"] for run in data["runs"]))
    kinds = ("test", "train")
    times = data.get("times", {})
    timed = list(TIMES) if times else []
    header = [
        "design",
        "parameters",
        *timed,
        *(f"{kind} error, {n}" for n in regimes for kind in kinds),
    ]
    lines = [f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
    found = [by_design(data, regime, f"{kind}_error") for regime in regimes for kind in kinds]
    for design in data["settings"]["designs"]:
        cells = [f"{each[design].mean():.2f} %" if design in each else "" for each in found]
        params = f"{predictors(design)['parameters']:,.0f}"
        own = [f"{1e3 * times[design][name]:.0f} ms" for name in timed]
        lines.append(f"| {' | '.join([design, params, *own, *cells])} |")
    return "\n".join(lines)


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw the error against what predicts it and what a user pays, then for few images."""
    summary = data["summary"]
    regimes = list(summary)
    times = data.get("times", {})
    paid = ["parameters", *(TIMES if times else [])]
    panels = [(regimes[0], "exact variance"), *((regimes[0], quantity) for quantity in paid)]
    panels += [(regime, "exact variance") for regime in regimes[1:]]
    figure.set_size_inches(4.2 * len(panels), 4.2)
    for ax, (regime, quantity) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _draw_errors(ax, summary[regime]["errors"], quantity, times)
        ax.set_title(regime, fontsize=10)
        label = "exact Var(K)/E[K]²" if quantity == "exact variance" else quantity
        ax.set_xlabel(f"{label}, ms" if quantity in TIMES else label)
    figure.axes[0].set_ylabel("test error in %")
    figure.axes[0].legend(frameon=False, fontsize=8)


def _draw_errors(
    ax: Axes, errors: dict[str, np.ndarray], quantity: str, times: dict[str, dict[str, float]]
) -> None:
    """Draw one point for each design, with two standard errors over the seeds."""
    for label, (color, designs) in _GROUPS.items():
        ax.plot([], [], "o", ms=4, color=color, label=label)
        for design in set(designs) & set(errors):
            values = errors[design]
            x = 1e3 * times[design][quantity] if quantity in TIMES else predictors(design)[quantity]
            several = len(values) > 1
            spread = ERRORS * values.std(ddof=1) / np.sqrt(len(values)) if several else 0.0
            ax.errorbar(x, values.mean(), spread, fmt="o", ms=4, capsize=2, color=color)
            name_point(ax, design, x, float(values.mean()))
    ax.set_xscale("log")
    places = {"exact variance": (0.02, 0.05, 0.1, 0.2), "parameters": (0.5e6, 1e6)}.get(
        quantity, (20, 30, 50, 70, 100, 150, 200, 300)
    )
    low, high = ax.get_xlim()
    shown = [place for place in places if low <= place <= high]
    ax.set_xticks(shown, [f"{place:,.12g}" for place in shown])
    ax.minorticks_off()
    ax.margins(x=0.2)
