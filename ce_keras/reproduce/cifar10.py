"""CIFAR-10: error of designs against the exact variance, and against a narrower baseline."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ce_keras.geometry import RESNEXTS, Design, resnext
from ce_keras.latency import Phase
from ce_keras.progress import progress
from ce_keras.reproduce.plots import name_point
from ce_keras.reproduce.protocol import CORRELATION, Check, Scale
from ce_keras.reproduce.statistics import permutation_p, rank_correlation
from ce_keras.reproduce.store import Points
from ce_keras.variance.law import ClosedFormLaw, law_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "CIFAR-10: which quantity predicts a design's error"

RECIPE, NETWORK = "cifar10_short", "resnext11c"

BASELINE = "1x64d"

#: Designs of the baseline's size, from the widest path to the narrowest.
PRIMAL = ("1x64d", "2x42d", "5x24d", "9x16d", "17x10d", "27x7d", "54x4d", "116x2d")

#: Duals by the paper's law and by the exact one; each with the narrower baseline of its size.
DUAL = {"7x7d": "1x28d", "11x7d": "1x37d"}

#: Comparisons that were chosen before training: a question, two designs, and what the paper says
#: of the difference in their errors (`None` where it makes no such comparison).
CONTRASTS = (
    ("primal by the exact law and baseline", "17x10d", BASELINE, "below 0"),
    ("primal by the paper's law and baseline", "27x7d", BASELINE, "below 0"),
    ("dual by the exact law and baseline", "11x7d", BASELINE, "0"),
    ("dual by the paper's law and baseline", "7x7d", BASELINE, "0"),
    ("dual by the exact law and narrower baseline of its size", "11x7d", "1x37d", None),
    ("dual by the paper's law and narrower baseline of its size", "7x7d", "1x28d", None),
)

ALL_IMAGES = "all images"
_TEST_IMAGES = 10_000

# Rank correlations are of so many designs at least.
_DESIGNS = 5

# Names of measured times, and the phases whose steps they are.
_TIMES: dict[str, Phase] = {"training time": "train", "inference time": "infer"}

# Images in a timed step.
_TIMED_IMAGES = 64

# A difference is called one beyond so many standard errors.
_ERRORS = 2.0


class Settings(NamedTuple):
    """Settings of the trainings.

    Attributes:
        source: source of the images, as in recipes: `"tfds"`, or a folder.
        designs: designs to train.
        seeds: trainings of every design; those of a seed see the same images in the same order.
        epochs: passes through all images, shifted and mirrored.
        few: number of images in the second regime, which has no augmentation.
        few_epochs: passes through them; enough for the training error to vanish.
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


# --- Training -----------------------------------------------------------------------------------


def measure(settings: Settings, seed: int, points: Points) -> dict[str, Any]:
    """Train every design with every seed, on all images and on few."""
    try:
        for design in settings.designs:
            Design.parse(design)
    except ValueError as error:
        raise ValueError(f"designs: {error}") from None
    regimes = (ALL_IMAGES, f"{settings.few:,} images")
    cases = list(itertools.product(range(settings.seeds), regimes, settings.designs))
    runs = []
    # The images of a regime are loaded once, and only if something is left to train.
    load = functools.cache(lambda regime: _dataset(_recipe(settings, regime, BASELINE)))
    with points.folder() as folder:
        for number, regime, design in progress(cases, desc="cifar10", delay=1):
            name = f"{design}-{regime.replace(',', '').replace(' ', '-')}-{seed + number}"
            arguments = (_recipe(settings, regime, design), seed + number, folder / name)
            result = points(name, _train, functools.partial(load, regime), *arguments)
            runs.append({"regime": regime, "design": design, "seed": seed + number, **result})
    return {"runs": runs, "times": points("times", step_times, settings.designs)}


def step_times(designs: Sequence[str], batch: int = _TIMED_IMAGES) -> dict[str, dict[str, float]]:
    """Return each design's seconds of a training step and of inference, on this machine.

    Networks take turns; medians.
    """
    from ce_keras import zoo
    from ce_keras.rewrite.timing import step_seconds

    models = []
    for design in designs:
        m, n = Design.parse(design)
        models.append(zoo.NETWORKS[NETWORK](cardinality=m, width=n))
    found = {name: step_seconds(models, batch, phase) for name, phase in _TIMES.items()}
    return {
        design: {name: times[index] for name, times in found.items()}
        for index, design in enumerate(designs)
    }


def _recipe(settings: Settings, regime: str, design: str) -> Any:
    """Return the recipe of a design in a regime."""
    from ce_keras.training import read_recipe

    m, n = Design.parse(design)
    changes: dict[str, Any] = {
        "model.cardinality": m,
        "model.width": n,
        "data.source": settings.source,
        "schedule.epochs": settings.epochs,
    }
    if regime != ALL_IMAGES:
        changes |= {
            "data.limit": settings.few,
            "data.augment": [],
            "optimizer.learning_rate": 0.1,
            "schedule.epochs": settings.few_epochs,
        }
    written = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in changes.items()
    }
    return read_recipe(RECIPE, written)


def _dataset(recipe: Any) -> Any:
    """Return the images of a recipe, in memory."""
    from ce_keras.training.datasets import ArrayDataset, load_dataset

    dataset = load_dataset(recipe.data)
    if not isinstance(dataset, ArrayDataset):
        raise ValueError(f"source: got {recipe.data.source!r}; its images do not fit into memory")
    return dataset


def _train(load: Callable[[], Any], recipe: Any, seed: int, folder: Path) -> dict[str, float]:
    """Train a recipe in a folder; return its last training loss, and errors in percent."""
    from ce_keras.training import train

    dataset = load()
    last = train(recipe, folder, seed=seed, dataset=dataset)["history"][-1]
    return {
        "train_loss": last["loss"],
        "train_error": _training_error(dataset, folder),
        "test_error": last["error"],
    }


def _training_error(dataset: Any, folder: Path) -> float:
    """Return the error of a finished run on its training images, in percent."""
    import keras

    images, labels = dataset.splits[0]
    pixels = images.astype(np.float32)
    pixels = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    logits = keras.models.load_model(folder / "model.keras").predict(pixels, 500, verbose=0)
    return float(100 * (logits.argmax(1) != labels).mean())


# --- Predictors and statistics ------------------------------------------------------------------


def predictors(design: str) -> dict[str, float]:
    """Return quantities that could predict a design's error, by name.

    The exact variance is the mean over the network's stages, whose paths are n, 2n and 4n wide.
    """
    shape = RESNEXTS[NETWORK]
    network, (m, n) = resnext(shape), Design.parse(design)
    stages = n * 2 ** np.arange(len(shape.blocks))
    exact = ClosedFormLaw(network.module, CORRELATION).path_variance(stages).mean() / m
    fitted = law_of(network.module, None, None).path_variance(np.array([n]))[0] / m
    return {
        "exact variance": float(exact),
        "variance by the paper's law": float(fitted),
        "parameters": float(network.params(m, n)),
        "FLOPs": float(network.flops(m, n)),
        "channels": float(m * n),
        "width": float(n),
    }


class Difference(NamedTuple):
    """Difference between two designs in points of test error, and its standard error."""

    value: float
    error: float
    seeds: int

    @property
    def significant(self) -> bool:
        """Return whether it is more than two standard errors from 0."""
        return abs(self.value) > _ERRORS * self.error

    def __str__(self) -> str:
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"{self.value:+.2f} ± {self.error:.2f} ({seeds})"


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Return the mean of a - b, paired by seed, with its standard error over the seeds.

    For one seed the standard error is that of two fractions of independent test images: it does
    not contain the variation between trainings.
    """
    pairs = a - b
    if len(pairs) > 1:
        error = pairs.std(ddof=1) / np.sqrt(len(pairs))
    else:
        fractions = np.array([a[0], b[0]]) / 100
        error = 100 * np.sqrt((fractions * (1 - fractions)).sum() / _TEST_IMAGES)
    return Difference(float(pairs.mean()), float(error), len(pairs))


def summarize(data: dict[str, Any]) -> dict[str, Any]:
    """Return, for each regime, errors by design, rank correlations and contrasts."""
    regimes = dict.fromkeys(run["regime"] for run in data["runs"])
    summary = {}
    for regime in regimes:
        errors = _by_design(data, regime, "test_error")
        summary[regime] = {
            "errors": errors,
            "train": _by_design(data, regime, "train_error"),
            "correlations": (
                _correlations(errors, data.get("times", {})) if len(errors) >= _DESIGNS else {}
            ),
            "contrasts": {
                (a, b): difference(errors[a], errors[b])
                for _, a, b, _ in CONTRASTS
                if a in errors and b in errors
            },
        }
    return summary


def _by_design(data: dict[str, Any], regime: str, quantity: str) -> dict[str, np.ndarray]:
    """Return a quantity of every design: an array over its seeds, in their order."""
    rows: dict[str, list[float]] = {}
    for run in sorted(data["runs"], key=lambda run: run["seed"]):
        if run["regime"] == regime:
            rows.setdefault(run["design"], []).append(run[quantity])
    return {design: np.array(values) for design, values in rows.items()}


def _correlations(
    errors: dict[str, np.ndarray], times: dict[str, dict[str, float]], draws: int = 2_000
) -> dict[str, Any]:
    """Return the rank correlation of each predictor with the mean error.

    Each comes with a 95 % bootstrap interval (designs, and seeds of each, are drawn again) and
    the p-value of a permutation test.
    """
    timed = errors.keys() <= times.keys()
    known = [predictors(design) | (times[design] if timed else {}) for design in errors]
    means = np.array([values.mean() for values in errors.values()])
    rng = np.random.default_rng(0)
    resampled = np.array(
        [rng.choice(values, (draws, len(values))).mean(1) for values in errors.values()]
    )
    picks = rng.integers(0, len(means), (draws, len(means)))
    # In a sample of fewer than three different designs ranks are given, or undefined.
    picks = picks[[len(set(pick)) > 2 for pick in picks]]
    found = {}
    for name in known[0]:
        values = np.array([each[name] for each in known])
        with np.errstate(invalid="ignore"):  # Equal values have no ranks.
            drawn = rank_correlation(
                values[picks], resampled[picks, np.arange(len(picks))[:, None]]
            )
        found[name] = {
            "value": float(rank_correlation(values, means)),
            "interval": [float(end) for end in np.nanquantile(drawn, [0.025, 0.975])],
            "p": permutation_p(values, means, seed=0),
        }
    return found


# --- Page ---------------------------------------------------------------------------------------


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
        device += f" Times are of a step of {_TIMED_IMAGES} images on {where}."
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
    timed = list(_TIMES) if times else []
    header = [
        "design",
        "parameters",
        *timed,
        *(f"{kind} error, {n}" for n in regimes for kind in kinds),
    ]
    lines = [f"| {' | '.join(header)} |", f"|---|{'--:|' * (len(header) - 1)}"]
    found = [_by_design(data, regime, f"{kind}_error") for regime in regimes for kind in kinds]
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
    paid = ["parameters", *(_TIMES if times else [])]
    panels = [(regimes[0], "exact variance"), *((regimes[0], quantity) for quantity in paid)]
    panels += [(regime, "exact variance") for regime in regimes[1:]]
    figure.set_size_inches(4.2 * len(panels), 4.2)
    for ax, (regime, quantity) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _draw_errors(ax, summary[regime]["errors"], quantity, times)
        ax.set_title(regime, fontsize=10)
        label = "exact Var(K)/E[K]²" if quantity == "exact variance" else quantity
        ax.set_xlabel(f"{label}, ms" if quantity in _TIMES else label)
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
            x = (
                1e3 * times[design][quantity]
                if quantity in _TIMES
                else predictors(design)[quantity]
            )
            several = len(values) > 1
            spread = _ERRORS * values.std(ddof=1) / np.sqrt(len(values)) if several else 0.0
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
