"""The analytic design against KerasTuner's sweeps: validation error, trials and seconds.

Every method proposes designs of the fully connected network on the baseline's primal curve, and
each trial trains one of them on the embedded images for the same number of epochs. The whole curve
is trained as well: regret is counted from its best design.

    python benchmarks/oracle_vs_sweep.py [--seeds 8] [--trials 5] [--epochs 6]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import keras_tuner
import numpy as np
from timing import report

from ce_keras import files, geometry, search, zoo
from ce_keras.training import balanced, load_fashion_mnist
from ce_keras.tuner import CollegialOracle

BASE = 100
WIDTHS = (3, 5, 8, 12, 18, 25, 35, 50, 70, 100)


class Epochs(NamedTuple):
    """Validation errors in percent and seconds of a training run, after every epoch."""

    errors: list[float]
    seconds: list[float]


class Race:
    """Images, designs and their errors.

    A design is trained once for each seed: every method that proposes it is given the same error
    and the same seconds.
    """

    def __init__(self, images: int, epochs: int, widths: Sequence[int]) -> None:
        train, test = load_fashion_mnist()
        train = balanced(train, images)
        half = len(test.labels) // 2
        self._train = train.images / np.float32(255), train.labels.astype("int32")
        self._valid = test.images[:half] / np.float32(255), test.labels[:half].astype("int32")
        self.epochs = epochs
        self.widths = tuple(widths)
        self.baseline = geometry.fully_connected(784, [BASE] * 5, 10)
        self.solution = search(self.baseline, widths=widths, alpha="closed_form")
        curve = self.solution.curve
        self.cardinality = dict(zip(curve.width.tolist(), curve.cardinality.tolist(), strict=True))
        self._seen: dict[tuple[int, int], Epochs] = {}

    def run(self, width: int, seed: int) -> Epochs:
        """Train a design for all epochs, once for each seed."""
        if (width, seed) not in self._seen:
            begun = time.perf_counter()
            model = zoo.fully_connected(
                base=BASE, cardinality=int(self.cardinality[width]), width=width, seed=seed
            )
            model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
            keras.utils.set_random_seed(seed)
            errors, seconds = [], []
            for _ in range(self.epochs):
                model.fit(*self._train, batch_size=64, verbose=0)
                _, accuracy = model.evaluate(*self._valid, batch_size=500, verbose=0)
                errors.append(100 * (1 - accuracy))
                seconds.append(time.perf_counter() - begun)
            self._seen[width, seed] = Epochs(errors, seconds)
        return self._seen[width, seed]

    def last(self, width: int, seed: int) -> float:
        """Return a design's error at the end of training."""
        return self.run(width, seed).errors[-1]

    def trial(self, values: dict[str, Any], seed: int) -> tuple[float, float]:
        """Return error and seconds of a trial; Hyperband's go on from an earlier trial."""
        begun = int(values.get("tuner/initial_epoch", 0))
        ended = int(values.get("tuner/epochs", self.epochs))
        run = self.run(int(values["width"]), seed)
        before = run.seconds[begun - 1] if begun else 0.0
        return run.errors[ended - 1], run.seconds[ended - 1] - before

    def sweep(self, oracle: keras_tuner.Oracle, seed: int) -> dict[str, float]:
        """Ask an oracle until it stops: the best error, trials, and seconds."""
        best, seconds, trials = math.inf, 0.0, 0
        with tempfile.TemporaryDirectory() as folder:
            oracle._set_project_dir(folder, "p")
            oracle.verbose = 0
            while True:
                begun = time.perf_counter()
                trial = oracle.create_trial("tuner")
                seconds += time.perf_counter() - begun
                if trial.status != "RUNNING":
                    return {"error": best, "seconds": seconds, "trials": trials}
                error, spent = self.trial(trial.hyperparameters.values, seed)
                best, seconds, trials = min(best, error), seconds + spent, trials + 1
                oracle.update_trial(trial.trial_id, {"val_error": error})
                trial.status = "COMPLETED"
                oracle.end_trial(trial)


def methods(race: Race, trials: int) -> dict[str, Callable[[int], keras_tuner.Oracle]]:
    """Return functions from a seed to an oracle, by the name of the method."""
    objective = keras_tuner.Objective("val_error", "min")

    def space() -> keras_tuner.HyperParameters:
        hp = keras_tuner.HyperParameters()
        hp.Choice("width", list(race.widths))
        return hp

    def common(seed: int, count: int = trials) -> dict[str, Any]:
        shared = {"hyperparameters": space(), "seed": seed + 1}
        return {"objective": objective, "max_trials": count, **shared}

    oracles = keras_tuner.oracles
    return {
        "theory": lambda seed: CollegialOracle(
            objective,
            race.baseline,
            alpha="closed_form",
            widths=race.widths,
            hard_budget=False,  # The grid's designs are the paper's: nearest to the budget.
            seed=seed + 1,
        ),
        "random": lambda seed: oracles.RandomSearchOracle(**common(seed)),
        "Bayesian": lambda seed: oracles.BayesianOptimizationOracle(
            **common(seed), num_initial_points=3
        ),
        "Hyperband": lambda seed: oracles.HyperbandOracle(
            objective, max_epochs=race.epochs, hyperparameters=space(), seed=seed + 1
        ),
        "grid": lambda seed: oracles.GridSearchOracle(**common(seed, len(race.widths))),
    }


def table(race: Race, found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the table of means over the seeds, with standard errors."""
    seeds = range(len(found["theory"]))
    lines = [
        "| method | trials | seconds | best validation error | regret |",
        "|---|---:|---:|---:|---:|",
    ]
    best = [min(race.last(width, seed) for width in race.widths) for seed in seeds]
    for name, runs in found.items():
        regret = [run["error"] - best[seed] for seed, run in enumerate(runs)]
        trials = statistics.mean(run["trials"] for run in runs)
        seconds = statistics.mean(run["seconds"] for run in runs)
        errors = [run["error"] for run in runs]
        lines.append(f"| {name} | {trials:.0f} | {seconds:.1f} | {_pm(errors)} % | {_pm(regret)} |")
    return lines


def curve_table(race: Race, seeds: int) -> list[str]:
    """Return the table of the whole primal curve."""
    solution = race.solution
    lines = ["| design | predicted variance | validation error |", "|---|---:|---:|"]
    for width, variance in zip(solution.curve.width, solution.curve.variance, strict=True):
        errors = [race.last(int(width), seed) for seed in range(seeds)]
        design = f"{race.cardinality[int(width)]}x{width}d"
        lines.append(f"| {design} | {variance:.3f} | {_pm(errors)} % |")
    return lines


def _pm(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw error against seconds: every seed, and the mean with its standard error."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, runs in found.items():
        x, y = (np.array([run[key] for run in runs]) for key in ("seconds", "error"))
        (dots,) = axes.plot(x, y, ".", alpha=0.35)
        mean, error = y.mean(), y.std(ddof=1) / math.sqrt(len(y)) if len(y) > 1 else 0.0
        axes.errorbar(x.mean(), mean, error, fmt="o", capsize=3, color=dots.get_color(), label=name)
    axes.set(xscale="log", xlabel="seconds of search, training included")
    axes.set_ylabel("best validation error, %")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend()
    with files.replacing(path) as part:
        figure.savefig(part, dpi=120)


def main() -> None:
    """Race, print, and write `oracle_vs_sweep.md` and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    race = Race(options.images, options.epochs, options.widths)
    for seed in range(options.seeds):
        for width in race.widths:
            race.run(width, seed)
    found = {
        name: [race.sweep(make(seed), seed) for seed in range(options.seeds)]
        for name, make in methods(race, options.trials).items()
    }
    cost = found["theory"], found["random"]
    shares = [statistics.mean(run["seconds"] for run in runs) for runs in cost]
    errors = [statistics.mean(run["error"] for run in runs) for runs in cost]
    apart = errors[0] - errors[1]
    verdict = (
        f"One analytic trial costs {shares[0] / shares[1]:.0%} of a random search of "
        f"{options.trials} trials, and is {abs(apart):.1f} points "
        f"{'worse' if apart > 0 else 'better'}."
    )
    lines = [
        "# The oracle beside KerasTuner's sweeps",
        "",
        f"Fully connected, six layers, base width {BASE}; {options.images} embedded images, "
        f"{options.epochs} epochs a trial; {options.seeds} seeds, ± is one standard error. Regret "
        "is the error above the best of the whole curve with the same seed.",
        "",
        *table(race, found),
        "",
        "The whole primal curve:",
        "",
        *curve_table(race, options.seeds),
        "",
        "![Error against seconds](oracle_vs_sweep.png)",
    ]
    report(options.out / "oracle_vs_sweep.md", verdict, lines)
    draw(found, options.out / "oracle_vs_sweep.png")


if __name__ == "__main__":
    main()
