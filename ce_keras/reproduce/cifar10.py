"""CIFAR-10: error of designs against the exact variance, and against a narrower baseline."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.geometry import RESNEXTS, Design, resnext
from ce_keras.progress import progress
from ce_keras.reproduce.result import Check, Points, Scale
from ce_keras.reproduce.statistics import permutation_p, rank_correlation
from ce_keras.variance.law import ClosedFormLaw, law_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "CIFAR-10: what predicts a design's error"

RECIPE = "cifar10_short"
NETWORK = "resnext11c"

#: Correlation of neighbouring pixels at the blocks' inputs of an untrained ResNeXt on CIFAR-10.
CORRELATION = 0.92

BASELINE = "1x64d"

#: Designs of the baseline's size, from the widest path to the narrowest.
PRIMAL = ("1x64d", "2x42d", "5x24d", "9x16d", "17x10d", "27x7d", "54x4d", "116x2d")

#: Designs that some law calls as smooth as the baseline, each with the narrower baseline of equal
#: size, which anybody would try first.
DUAL = {"7x7d": "1x28d", "11x7d": "1x37d"}

#: Differences in error that were decided on before anything was trained, by what they answer.
CONTRASTS = (
    ("primal by the exact law, and the baseline", "17x10d", BASELINE),
    ("primal by the paper's law, and the baseline", "27x7d", BASELINE),
    ("dual by the exact law, and the baseline", "11x7d", BASELINE),
    ("dual by the paper's law, and the baseline", "7x7d", BASELINE),
    ("dual by the exact law, and the narrower baseline of its size", "11x7d", "1x37d"),
    ("dual by the paper's law, and the narrower baseline of its size", "7x7d", "1x28d"),
)

_TEST_IMAGES = 10_000

# Differences beyond so many standard errors are called differences.
_ERRORS = 2.0


class Settings(NamedTuple):
    """The settings.

    Attributes:
        source: where the images are, as in recipes: `"tfds"`, or a folder.
        designs: that are trained.
        seeds: of every design; those of a seed see the same images in the same order.
        epochs: with all images, cropped and mirrored.
        few: number of images in the second regime, without augmentation.
        few_epochs: with few images; enough for the training error to vanish.
    """

    source: str = "tfds"
    designs: tuple[str, ...] = (*PRIMAL, *itertools.chain(*DUAL.items()))
    seeds: int = 5
    epochs: int = 20
    few: int = 5_000
    few_epochs: int = 60


SCALES: dict[Scale, Settings] = {
    "small": Settings(designs=("1x64d", "11x7d", "1x37d"), seeds=1, epochs=8, few_epochs=30),
    "full": Settings(),
}


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Train every design with every seed, with all images and with few."""
    for design in settings.designs:
        Design.parse(design)
    cases = list(itertools.product(range(settings.seeds), regimes(settings), settings.designs))
    runs = []
    with points.folder() as folder:
        for number, regime, design in progress(cases, desc="cifar10", delay=1):
            name = f"{design} {regime} {seed + number}".replace(",", "").replace(" ", "-")
            result = points(name, _train, settings, regime, design, seed + number, folder / name)
            runs.append({"regime": regime, "design": design, "seed": seed + number, **result})
    return {"runs": runs}


def regimes(settings: Settings) -> tuple[str, str]:
    """Return the names of the two regimes: all images, and few."""
    return "all images", f"{settings.few:,} images"


def _train(settings: Settings, regime: str, design: str, seed: int, folder: Any) -> dict[str, Any]:
    """Train one design; return its errors, and the loss on the training images."""
    from ce_keras.training import read_recipe, train

    m, n = Design.parse(design)
    changes: dict[str, Any] = {
        "model.cardinality": m,
        "model.width": n,
        "data.source": settings.source,
        "schedule.epochs": settings.epochs,
    }
    if regime != "all images":
        changes |= {
            "data.limit": settings.few,
            "data.augment": [],
            "optimizer.learning_rate": 0.1,
            "schedule.epochs": settings.few_epochs,
        }
    last = train(read_recipe(RECIPE, changes), folder, seed=seed)["history"][-1]
    kept = ("train_loss", "train_error", "test_loss", "test_error")
    return {key: last[key] for key in kept if key in last}


# --- What the laws say --------------------------------------------------------------------------


def predictors(design: str) -> dict[str, float]:
    """Return what could predict the error of a design: the variance by two laws, and sizes.

    The exact variance is the mean over the three stages, whose paths are n, 2n and 4n wide.
    """
    shape = RESNEXTS[NETWORK]
    network, (m, n) = resnext(shape), Design.parse(design)
    exact = ClosedFormLaw(network.module, CORRELATION)
    widths = n * 2 ** np.arange(len(shape.blocks))
    return {
        "exact variance": float(exact.path_variance(widths).mean() / m),
        "the paper's law": float(
            law_of(network.module, None, None).path_variance(np.array([n]))[0] / m
        ),
        "parameters": float(network.params(m, n)),
        "FLOPs": float(network.flops(m, n)),
        "channels": float(m * n),
        "width": float(n),
    }


# --- What was found -----------------------------------------------------------------------------


class Difference(NamedTuple):
    """A difference between two designs, in points of test error, and its standard error."""

    value: float
    error: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether it is more than two standard errors from nothing."""
        return abs(self.value) > _ERRORS * self.error


def errors(data: dict[str, Any], regime: str, quantity: str = "test_error") -> dict[str, Any]:
    """Return a quantity of every design of a regime: an array over its seeds, in their order."""
    rows: dict[str, list[float]] = {}
    for run in sorted(data["runs"], key=lambda run: run["seed"]):
        if run["regime"] == regime:
            rows.setdefault(run["design"], []).append(run[quantity])
    return {design: np.array(values) for design, values in rows.items()}


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Return the mean of a - b, paired by seed, with its standard error over the seeds.

    Of a single seed the error is that of two shares of the test images, as if they were drawn
    anew for each design: training anew is not in it.
    """
    pairs = a - b
    if len(pairs) > 1:
        return Difference(
            float(pairs.mean()), float(pairs.std(ddof=1) / np.sqrt(len(pairs))), len(pairs)
        )
    shares = np.array([a[0], b[0]]) / 100
    spread = 100 * np.sqrt((shares * (1 - shares)).sum() / _TEST_IMAGES)
    return Difference(float(pairs[0]), float(spread), 1)


def correlations(
    data: dict[str, Any], regime: str, draws: int = 2_000
) -> dict[str, tuple[float, float, float, float]]:
    """Return each predictor's rank correlation with the error over all designs.

    Returns:
        By predictor: Spearman's coefficient, the ends of its 95 % bootstrap interval (designs and
        seeds are drawn anew), and the p-value of a permutation test.
    """
    found = errors(data, regime)
    designs = list(found)
    known = [predictors(design) for design in designs]
    means = np.array([found[design].mean() for design in designs])
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(designs), (draws, len(designs)))
    drawn = np.array(
        [
            [rng.choice(found[designs[at]], len(found[designs[at]])).mean() for at in pick]
            for pick in picks
        ]
    )
    result = {}
    for name in known[0]:
        values = np.array([each[name] for each in known])
        samples = [
            rank_correlation(values[pick], error)
            for pick, error in zip(picks, drawn, strict=True)
            if len(set(pick)) > 2
        ]
        low, high = np.quantile(samples, [0.025, 0.975])
        result[name] = (
            rank_correlation(values, means),
            float(low),
            float(high),
            permutation_p(values, means, seed=0),
        )
    return result


def _regimes(data: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["regime"] for run in data["runs"]))


def _contrasts(data: dict[str, Any], regime: str) -> Iterable[tuple[str, str, str, Difference]]:
    found = errors(data, regime)
    for question, a, b in CONTRASTS:
        if a in found and b in found:
            yield question, a, b, difference(found[a], found[b])


def compare(data: dict[str, Any]) -> list[Check]:
    """The paper's two claims, and what was found; then the contrasts."""
    checks = []
    for regime in _regimes(data):
        if len(errors(data, regime)) > 2:
            value, low, high, p = correlations(data, regime)["exact variance"]
            checks.append(
                Check(
                    f"{regime}: rank correlation of error and exact variance",
                    "high",
                    f"{value:.2f} (95 % interval {low:.2f} to {high:.2f}; p = {p:.4f})",
                    bool(value > 0) if p < 0.05 else None,
                )
            )
        for question, a, b, found in _contrasts(data, regime):
            # Below the baseline is what the primal promises, level with it the dual; the paper
            # has no narrower baseline.
            claim = {"primal": "below 0", "dual": "0"}[question.split()[0]]
            agrees = found.value < 0 if found.clear else None
            if claim == "0" and b == BASELINE:
                agrees = not found.clear
            if b != BASELINE:
                claim, agrees = "not compared", None
            checks.append(
                Check(
                    f"{regime}: {question}, {a} - {b}, points of error", claim, _told(found), agrees
                )
            )
    return checks


def _told(found: Difference) -> str:
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
    return f"{found.value:+.2f} ± {found.error:.2f} ({seeds})"


def say(data: dict[str, Any]) -> str:
    """Return what predicts the error in each regime, and what an ensemble buys."""
    told = []
    for regime in _regimes(data):
        found = errors(data, regime)
        trained = errors(data, regime, "train_error")
        if len(found) > 2:
            every = correlations(data, regime)
            best = max(every, key=lambda name: abs(every[name][0]))
            told.append(
                f"{regime[0].upper()}{regime[1:]} (training error "
                f"{min(v.mean() for v in trained.values()):.1f} to "
                f"{max(v.mean() for v in trained.values()):.1f} %): over {len(found)} designs the "
                f"test error goes with the exact variance by a rank correlation of "
                f"{every['exact variance'][0]:.2f}; the best predictor is {best}, "
                f"{every[best][0]:.2f}; "
                + ", ".join(
                    f"{name} {every[name][0]:.2f}"
                    for name in every
                    if name not in ("exact variance", best)
                )
                + "."
            )
        clear = [
            f"{a} against {b}: {_told(each)} points" for _, a, b, each in _contrasts(data, regime)
        ]
        told.append(f"{'; '.join(clear)}." if clear else "")
    device = data.get("device")
    where = f" On one {device}, bfloat16." if device else ""
    return (
        f"ResNeXt-11 for 32x32 images, {BASELINE} to {PRIMAL[-1]} at equal parameters, and the "
        f"duals with the narrower baselines of their size.{where} " + " ".join(told)
    )


def draw(data: dict[str, Any], figure: Figure) -> None:
    """Draw error against exact variance, and against parameters, for both regimes."""
    names = _regimes(data)
    for row, regime in enumerate(names):
        found = errors(data, regime)
        for column, quantity in enumerate(("exact variance", "parameters")):
            ax = figure.add_subplot(len(names), 2, 2 * row + column + 1)
            _scatter(ax, found, quantity)
            ax.set_xlabel("exact Var(K)/E[K]², mean of the stages" if column == 0 else "parameters")
            if column == 0:
                ax.set_ylabel(f"test error in %\n{regime}")


_KINDS: dict[str, tuple[str, Sequence[str]]] = {
    "of the baseline's size": ("tab:blue", PRIMAL[1:]),
    "duals": ("tab:green", tuple(DUAL)),
    "baseline, and narrower": ("black", (BASELINE, *DUAL.values())),
}


def _scatter(ax: Any, found: dict[str, np.ndarray], quantity: str) -> None:
    """Draw one point a design, with two standard errors."""
    for label, (color, designs) in _KINDS.items():
        here = [design for design in designs if design in found]
        x = [predictors(design)[quantity] for design in here]
        y = [found[design].mean() for design in here]
        spread = [
            _ERRORS * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
            for values in (found[design] for design in here)
        ]
        ax.errorbar(x, y, spread, fmt="o", ms=4, capsize=2, color=color, label=label)
        for design, a, b in zip(here, x, y, strict=True):
            ax.annotate(design, (a, b), (4, 3), textcoords="offset points", fontsize=7)
    ax.set_xscale("log")
    ax.legend(frameon=False, fontsize=7)
