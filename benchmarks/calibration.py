"""Compare what a smaller network begins with: calibrated, split, pruned, and new weights.

    python benchmarks/calibration.py [--data FOLDER] [--seeds 5] [--epochs 1 2 5]

The trained models are a fully connected network on the embedded images, a new one for each seed,
and, where `--data` names a folder of CIFAR-10 (`train/CLASS` and `test/CLASS`), the ResNeXt-11 that
comes with the package. Every result is kept as it comes; a stopped run is continued.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from timing import begin_with
from tqdm import tqdm

import ce_keras
from ce_keras import files, zoo
from ce_keras.resumable import ResumableResults
from ce_keras.rewrite.calibration.graph import FlatGraph
from ce_keras.rewrite.calibration.units import Links
from ce_keras.rewrite.chains import find_chains
from ce_keras.rewrite.splitting import fill
from ce_keras.training import balanced, load_fashion_mnist
from ce_keras.training.image_files import decode_file, find_classes, labelled_files
from ce_keras.training.images import balanced_rows

#: For each network: an ensemble and the narrower network of as many parameters.
DESIGNS = {"dense": ("3x67d", "1x158d"), "cifar10": ("11x7d", "1x37d")}
NAMES = {"dense": "fully connected, 4 x 200", "cifar10": "ResNeXt-11 1x64d, CIFAR-10"}
STARTS = ("calibrated", "split", "pruned", "new")


class Data(NamedTuple):
    """Images as a network reads them, with labels."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def dense_data(options: argparse.Namespace) -> Data:
    """Return the embedded images."""
    train, test = load_fashion_mnist()
    parts = (balanced(train, options.train or len(train.labels)), test)
    return Data(*((part.images.astype("float32") / 255, part.labels) for part in parts))


def cifar10_data(options: argparse.Namespace) -> Data:
    """Return the images in a folder, normalised as for the weights that come with the package."""
    (train, test), names = find_classes(options.data)
    entry = zoo.published_weights("resnext11c_1x64d")["resnext11c_1x64d/cifar10"]
    wanted = options.train or (None if options.epochs else 5 * options.images)

    def read(split: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
        paths, labels = map(np.array, zip(*labelled_files(split, names), strict=True))
        rows = slice(None) if count is None else balanced_rows(labels, count)
        images = np.stack([decode_file(path, 3) for path in tqdm(paths[rows], leave=False)])
        return (images - np.float32(entry["mean"])) / np.float32(entry["deviation"]), labels[rows]

    return Data(read(train, wanted), read(test, options.test))


def trained_dense(seed: int, data: Data) -> keras.Model:
    """Return a network of four hidden layers of 200, trained for ten epochs."""
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(200, "relu", kernel_initializer="he_normal") for _ in range(4)]
    flat = [keras.Input((28, 28, 1)), keras.layers.Flatten()]
    model = keras.Sequential([*flat, *hidden, keras.layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*data.train, batch_size=100, epochs=10, verbose=0)
    return model


def trained_cifar10(seed: int, data: Data) -> keras.Model:
    """Return the network that comes with the package."""
    del seed, data
    return zoo.resnext11c(mode="baseline", weights="cifar10")


NETWORKS = {"dense": (dense_data, trained_dense), "cifar10": (cifar10_data, trained_cifar10)}


# Starts -------------------------------------------------------------------------------------------


def started(model: keras.Model, design: str, start: str, seed: int, images: Any) -> keras.Model:
    """Return a smaller network with the weights that it begins with."""
    keras.utils.set_random_seed(seed + 100)
    if start == "calibrated":
        return ce_keras.collegialize(
            model, design=design, init="calibrated", data=images, seed=seed
        )
    init = "random" if start == "new" else "split"
    smaller = ce_keras.collegialize(model, design=design, init=init, seed=seed)
    if start == "pruned":
        prune(model, smaller, images)
    return smaller


def prune(model: keras.Model, smaller: keras.Model, images: np.ndarray) -> None:
    """Keep the channels whose filters have the largest sums of absolute weights.

    Weights stay as they are; statistics of batch normalisations are estimated again.
    """
    m, _ = smaller.report.decisions[0].design
    new = {id(layer): smaller.get_layer(layer.name) for layer in model.layers[1:]}
    graph = FlatGraph(model)
    for chain in find_chains(model)[0]:
        links = Links(graph, chain)
        own = {}
        for index in set(links.owners):
            kernel = keras.ops.convert_to_numpy(chain.linear[index].layer.kernel)
            order = np.argsort(-abs(kernel).sum(tuple(range(kernel.ndim - 1))), kind="stable")
            layer = new[id(chain.linear[index].layer)]
            width = getattr(layer, "units", None) or layer.filters
            own[index] = list(np.resize(order, width).reshape(m, -1))
        fill(chain, links.units(chain, own), new, exponent=0)
    norms = [x for x in smaller.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    smaller(images[:500], training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def tuned(
    model: keras.Model, smaller: keras.Model, epochs: int, distil: bool, seed: int, data: Data
) -> None:
    """Train by Adam, its rate falling to zero; with the model as teacher if asked."""
    keras.utils.set_random_seed(seed + 200)
    steps = epochs * math.ceil(len(data.train[1]) / 100)
    adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps))
    learner: Any = smaller
    if distil:
        loss = keras.distillation.FeatureDistillation(loss="kl_divergence")
        learner = keras.distillation.Distiller(model, smaller, loss)
    # Compiling by XLA would take longer than so short a training, and tracing than a few steps.
    options = {"jit_compile": False, "run_eagerly": steps <= 16}
    learner.compile(adam, "sparse_categorical_crossentropy", **options)
    learner.fit(*data.train, batch_size=100, epochs=epochs, verbose=0)
    model.trainable = True  # The distiller has frozen it.


# Results ------------------------------------------------------------------------------------------


def accuracy(model: keras.Model, data: Data) -> tuple[float, np.ndarray]:
    """Return the accuracy on the test images in percent, and the classes."""
    x = data.test[0]
    parts = [np.asarray(model(x[start : start + 250])) for start in range(0, len(x), 250)]
    found = np.concatenate(parts).argmax(-1)
    return float(100 * (found == data.test[1]).mean()), found


def key(network: str, design: str, start: str, seed: int, tuning: str = "before") -> str:
    """Return the name of a result."""
    return f"{network}/{design}/{start}/{seed}/{tuning}"


def tunings(options: argparse.Namespace) -> Iterator[tuple[str, int, bool]]:
    """Yield the trainings: name, epochs, and whether by distillation."""
    for epochs in options.epochs:
        yield f"{epochs}", epochs, False
        yield f"{epochs} distilled", epochs, True


def measure(network: str, options: argparse.Namespace, results: ResumableResults) -> None:
    """Measure one network's starts."""
    cases = [
        (design, start, seed)
        for seed in range(options.seeds)
        for design in DESIGNS[network]
        for start in options.starts
    ]
    names = ["before", *(name for name, *_ in tunings(options))]
    if all(key(network, *case, name) in results.done for case in cases for name in names):
        return
    load, train = NETWORKS[network]
    data = load(options)
    models: dict[int, Any] = {}
    for design, start, seed in tqdm(cases, desc=network):
        if seed not in models:
            model = train(seed, data)
            models = {seed: (model, *accuracy(model, data))}
        model, right, classes = models[seed]
        rng = np.random.default_rng(seed)
        images = data.train[0][rng.permutation(len(data.train[1]))[: options.images]]
        smaller = begun = None
        for name, epochs, distil in (("before", 0, False), *tunings(options)):
            place = key(network, design, start, seed, name)
            if place in results.done:
                continue
            if smaller is None:
                smaller = started(model, design, start, seed, images)
                begun = smaller.get_weights()
            smaller.set_weights(begun)
            if epochs:
                tuned(model, smaller, epochs, distil, seed, data)
            found, own = accuracy(smaller, data)
            counts = {"params": int(smaller.count_params()), "model": right}
            agreement = float(100 * (own == classes).mean())
            results.keep(place, {**counts, "accuracy": found, "agreement": agreement})


def finished(
    network: str, design: str, start: str, results: dict[str, Any], seeds: int, names: Sequence[str]
) -> list[int]:
    """Return the seeds of which all these results are there."""
    return [
        seed
        for seed in range(seeds)
        if all(key(network, design, start, seed, name) in results for name in names)
    ]


def complete(network: str, results: dict[str, Any], seeds: int) -> list[int]:
    """Return the seeds of which all results before training are there."""
    cases = itertools.product(DESIGNS[network], STARTS)
    found = [set(finished(network, *case, results, seeds, ["before"])) for case in cases]
    return sorted(set.intersection(*found))


def report(results: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the page, of the seeds that are finished."""
    lines = [
        "# Smaller networks from trained ones",
        "",
        "Accuracy on test images in percent, mean ± one standard error over seeds, calibrated on "
        f"{options.images:,} training images without labels (a fifth of them held out). *Pruned*: "
        "the channels of the largest filters are kept, batch statistics estimated again. *Lost*: "
        "points below the model before any training. *Agree*: test images on which the class is "
        "the model's. Trainings are by Adam, its rate falling from 0.001 to zero, without and with "
        "the model as teacher (`keras.distillation`, half of the loss).",
    ]
    told = []
    for network in NETWORKS:
        own = argparse.Namespace(epochs=_trained(network, results))
        names = ["before", *(name for name, *_ in tunings(own))]
        seeds = complete(network, results, options.seeds)
        if not seeds:
            continue
        heads = ["before training", "seeds trained", *(f"epochs: {name}" for name in names[1:])]
        model = [results[key(network, DESIGNS[network][0], "new", n)]["model"] for n in seeds]
        lines += [
            "",
            f"## {NAMES[network]}",
            "",
            f"The model: {_told(model)} %. Seeds before training: {len(seeds)}.",
            "",
            f"| network | parameters | start | lost | agree | {' | '.join(heads)} |",
            f"|---|--:|---|--:|--:|{'--:|' * len(heads)}",
            *_rows(network, results, names, seeds),
        ]
        told.append(_verdict(network, results, seeds))
    verdict = f"Points of accuracy lost by calibration, without labels: {'; '.join(told)}."
    return "\n".join(begin_with(verdict, lines)) + "\n"


def _trained(network: str, results: dict[str, Any]) -> list[int]:
    """Return the epochs of the trainings that there are results of."""
    found = {name.split("/")[-1] for name in results if name.startswith(f"{network}/")}
    return sorted(int(name) for name in found if name.isdigit())


def _rows(network: str, results: Any, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    rows = []
    for design in DESIGNS[network]:
        for start in STARTS:
            trained = finished(network, design, start, results, max(seeds) + 1, names)
            found = [
                [
                    results[key(network, design, start, n, name)]
                    for n in (seeds if name == "before" else trained)
                ]
                for name in names
            ]
            before = found[0]
            cells = [
                design,
                f"{before[0]['params']:,}",
                start,
                _told([each["model"] - each["accuracy"] for each in before]),
                _told([each["agreement"] for each in before]),
                _told([each["accuracy"] for each in before]),
                str(len(trained)) if names[1:] else "0",
                *(_told([each["accuracy"] for each in column]) for column in found[1:]),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _verdict(network: str, results: dict[str, Any], seeds: Sequence[int]) -> str:
    """Return the outcome for one network, in words."""

    def lost(design: str, start: str) -> float:
        found = [results[key(network, design, start, seed)] for seed in seeds]
        return statistics.mean(each["model"] - each["accuracy"] for each in found)

    ensemble, narrower = (lost(each, "calibrated") for each in DESIGNS[network])
    others = min(lost(each, start) for each in DESIGNS[network] for start in STARTS[1:])
    return (
        f"{NAMES[network]}: {narrower:.1f} as a narrower network and {ensemble:.1f} as an ensemble "
        f"(the best other start: {others:.1f})"
    )


def _told(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=NETWORKS, nargs="+")
    parser.add_argument("--data", type=Path, help="a folder of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--images", type=int, default=1000, help="to calibrate on")
    parser.add_argument("--train", type=int, help="training images, if not all")
    parser.add_argument("--test", type=int, help="test images of CIFAR-10, if not all")
    parser.add_argument("--epochs", type=int, nargs="*", default=[], help="trainings as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    options = parser.parse_args()
    options.network = options.network or ["dense", *(["cifar10"] if options.data else [])]
    if "cifar10" in options.network and options.data is None:
        parser.error("--data: name a folder of CIFAR-10")
    settings = {name: getattr(options, name) for name in ("images", "train", "test")}
    results = ResumableResults(options.out / "calibration.json", settings, "--out")
    for network in () if options.page else options.network:
        measure(network, options, results)
    with files.replacing(options.out / "calibration.md") as part:
        part.write_text(report(results.done, options))


if __name__ == "__main__":
    main()
