"""The cards in `zoo/`: what is known of every network, each figure with where it is from.

python benchmarks/zoo_cards.py              # Write them from what was counted and measured.
python benchmarks/zoo_cards.py --measure    # Measure speeds first: an hour.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import interleaved

from ce_keras import files
from ce_keras.designs import PUBLISHED
from ce_keras.training.recipe import read_recipe

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "zoo"

#: The recipe that trains a family, and its data.
RECIPES = {
    "resnext11": ("fashion_mnist", "Fashion-MNIST"),
    "resnext11c": ("cifar10_short", "CIFAR-10"),
    "resnext29": ("cifar10", "CIFAR-10"),
    "resnext38": ("imagenet64", "ImageNet at 64x64"),
    "resnext50": ("imagenet", "ImageNet"),
    "resnext101": ("imagenet", "ImageNet"),
    "resnext152": ("imagenet", "ImageNet"),
    "fully_connected": ("mnist", "MNIST"),
}

_BATCH, _ROUNDS = 4, 3
_SPEEDS = ("inference", "training")


def rows() -> list[dict[str, Any]]:
    """All that is known of every network, in the order of the catalogue."""
    from ce_keras import zoo

    measured = files.read_json(ZOO / "measured.json")
    millions = {f"{row.network}_{row.design}": row.millions for row in PUBLISHED}
    trained = zoo.published_weights()
    found = []
    for entry in zoo.entries():
        counted = measured["models"][entry.name]
        expected = _paper_error(entry)
        own = {key: value for key, value in trained.items() if key.startswith(f"{entry.name}/")}
        found.append(
            {
                "name": entry.name,
                "family": entry.family,
                "kind": entry.mode,
                "design": str(entry.design or ""),
                "origin": entry.origin,
                "parameters": counted["parameters"],
                "published_millions": millions.get(entry.name, ""),
                "flops": counted["flops"],
                "activations_mib": f"{counted['activations'] / 2**20:.1f}",
                "peak_activations_mib": f"{counted['peak_activations'] / 2**20:.1f}",
                "inference_images_per_second": _rate(counted["inference"]),
                "training_images_per_second": _rate(counted["training"]),
                **{f"{name}_times_keras": _times(counted, name) for name in _SPEEDS},
                "paper_error": expected[0],
                "paper_source": expected[1],
                "our_error": ", ".join(f"{value['error']:.2f}" for value in own.values()),
                "our_run": ", ".join(value["run"] for value in own.values()),
                "command": _command(entry),
            }
        )
    return found


def _command(entry: Any) -> str:
    """What trains it; empty where no recipe does."""
    family = entry.family.replace("resnet", "resnext")
    if entry.design is None or family not in RECIPES:
        return ""
    recipe, _ = RECIPES[family]
    name = "" if read_recipe(recipe).model.name == family else f" --set model.name={family}"
    m, n = entry.design
    return f"ce-keras train {recipe}{name} --set model.cardinality={m} --set model.width={n}"


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(counted: dict[str, Any], name: str) -> str:
    """Empty where there are no paths: the layers are Keras' own."""
    return f"{counted['times_keras'][name]:.1f}" if "times_keras" in counted else ""


def _paper_error(entry: Any) -> tuple[Any, str]:
    """Top-1, in percent, and of what it is."""
    family = entry.family.replace("resnet", "resnext") if entry.design else "resnext29"
    if family not in RECIPES:
        return "", ""
    recipe, data = RECIPES[family]
    name = f"{family}_{entry.design}" if entry.design else entry.name
    error = read_recipe(recipe).expected.error.get(name, "")
    return error, f"{data}, Table {entry.table}" if error else ""


# Measuring ---------------------------------------------------------------------------------------


def measure() -> None:
    """Count and time every network, and write `measured.json`."""
    from ce_keras import zoo

    path = ZOO / "measured.json"
    models = files.read_json(path)["models"] if path.exists() else {}
    for entry in zoo.entries():
        known = models.setdefault(entry.name, {})
        model = zoo.create(entry.name, classifier_activation=None)
        known.update(_counted(model))
        if "training" not in known:
            known.update(_rates(model))
        if _is_grouped(model) and "times_keras" not in known:
            known["times_keras"] = _times_keras(model)
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        files.write_json(path, {"machine": machine, "batch": _BATCH, "models": models})
        print(entry.name, known, flush=True)


def _counted(model: Any) -> dict[str, int]:
    from ce_keras import zoo
    from ce_keras.layers.flops import flops

    return {
        "parameters": zoo.trained_parameters(model),
        "flops": flops(model),
        "activations": sum(_bytes(layer.output) for layer in model.operations),
        "peak_activations": peak_activations(model),
    }


def peak_activations(model: Any) -> int:
    """Bytes alive at most while an image passes, each output held from its layer to its last use.

    Operations run in the model's order, and none overwrites what it reads.
    """
    import keras

    operations = model.operations
    last_use = {
        id(tensor): index
        for index, operation in enumerate(operations)
        for tensor in keras.tree.flatten(operation.input)
    }
    last_use.update({id(tensor): len(operations) for tensor in keras.tree.flatten(model.output)})
    alive: dict[int, int] = {}
    peak = 0
    for index, operation in enumerate(operations):
        alive.update({id(each): _bytes(each) for each in keras.tree.flatten(operation.output)})
        peak = max(peak, sum(alive.values()))
        alive = {key: size for key, size in alive.items() if last_use.get(key, -1) > index}
    return peak


def _bytes(tensors: Any) -> int:
    """Of float32, for one image."""
    import keras

    return 4 * sum(math.prod(tensor.shape[1:]) for tensor in keras.tree.flatten(tensors))


def _steps(model: Any) -> dict[str, Callable[[], Any]]:
    """A batch of inference, and a step of training."""
    import tensorflow as tf

    from ce_keras.training.optimizer import CoupledSGD
    from ce_keras.training.strategy import find_strategy
    from ce_keras.training.train_step import make_train_step

    x, y = tf.random.normal((_BATCH, *model.input_shape[1:])), tf.zeros(_BATCH, tf.int32)
    optimizer = CoupledSGD(0.0)
    optimizer.build(model.trainable_variables)

    def losses(logits: Any, labels: Any) -> Any:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

    train = make_train_step(find_strategy(), model, optimizer, losses)
    infer = tf.function(lambda images: model(images, training=False), autograph=False)
    return {"inference": lambda: infer(x), "training": lambda: train((x, y), False).numpy()}


def _rates(model: Any) -> dict[str, float]:
    """Images a second."""
    timings = interleaved(_steps(model), _ROUNDS)
    return {name: _BATCH / timing.median for name, timing in timings.items()}


def _is_grouped(model: Any) -> bool:
    from ce_keras.layers import CollegialConv2D

    return any(isinstance(layer, CollegialConv2D) and layer.groups > 1 for layer in model.layers)


def _times_keras(model: Any) -> dict[str, float]:
    """How many times longer it takes with `keras.layers.Conv2D(groups=...)`, turn by turn."""
    from grouped_conv import with_stock_layers

    from ce_keras.layers import CollegialConv2D

    ours, theirs = _steps(model), _steps(with_stock_layers(model, (CollegialConv2D,)))
    ratios = {}
    for name, step in ours.items():
        timings = interleaved({"ours": step, "theirs": theirs[name]}, _ROUNDS)
        ratios[name] = timings["theirs"].median / timings["ours"].median
    return ratios


# Writing -----------------------------------------------------------------------------------------


def card(row: dict[str, Any], machine: str) -> str:
    """One network's page."""
    from ce_keras import zoo

    origin = (
        "published in the paper" if row["origin"] == "published" else "derived by `ce_keras.search`"
    )
    lines = [
        f"# {row['name']}",
        "",
        f"`ce_keras.zoo.create({row['name']!r})`: "
        + (f"{row['kind']} design {row['design']}, {origin}." if row["design"] else "Table 1's."),
        "",
        "| what | figure |",
        "|---|---:|",
        f"| parameters | {row['parameters']:,} |",
        *([f"| as printed | {row['published_millions']}M |"] if row["published_millions"] else []),
        f"| FLOPs for an image | {row['flops']:,} |",
        f"| activations alive at most, inference | {row['peak_activations_mib']} MiB |",
        f"| activations of all layers, training | {row['activations_mib']} MiB |",
        *(f"| images a second, {name} | {row[f'{name}_images_per_second']} |" for name in _SPEEDS),
        *(
            f"| times faster than with Keras' own grouped layer, {name} | {times} |"
            for name in _SPEEDS
            if (times := row[f"{name}_times_keras"])
        ),
    ]
    if row["paper_error"]:
        lines.append(f"| the paper's error ({row['paper_source']}) | {row['paper_error']} % |")
    weights = zoo.published_weights(row["name"])
    lines += [
        f"| our error ({value['data']}) | {value['error']:.2f} % |" for value in weights.values()
    ]
    lines += [
        "",
        f"Activations are counted: float32, for one image, no output in the place of another. "
        f"Speeds: batches of {_BATCH} on {machine}.",
    ]
    if row["command"]:
        lines += ["", f"To train it: `{row['command']}`."]
    for key, value in weights.items():
        data = key.partition("/")[2]
        lines += [
            "",
            f"Trained weights: `weights={data!r}`, made by `{value['run']}`; "
            f"[log]({value['log']}). Their error is the last epoch's; the mean of the last "
            f"{value['averaged_over_epochs']} of {value['epochs']} epochs is "
            f"{value['mean_error']:.2f} %.",
        ]
    return "\n".join(lines) + "\n"


def readme(found: list[dict[str, Any]]) -> str:
    """The table that people look at first."""
    lines = [
        "# The zoo",
        "",
        "Every network by name: `ce_keras.zoo.create(name)`. *Published* designs are rows of the",
        "paper's Tables 1 and 2, *derived* ones are what `ce_keras.search` answers. Errors are the",
        "paper's, top-1 in percent; ours stand where there is a run, and nowhere else.",
        "",
        "![The paper's errors against parameters](error.png)",
        "",
        "| network | kind | origin | parameters | FLOPs | the paper's error | our error |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for row in found:
        paper = f"{row['paper_error']} ({row['paper_source']})" if row["paper_error"] else ""
        lines.append(
            f"| [{row['name']}]({row['name']}.md) | {row['kind']} | {row['origin']} "
            f"| {row['parameters']:,} | {row['flops']:,} | {paper} | {row['our_error']} |"
        )
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Error against parameters, for the paper's rows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = {"baseline": "black", "resnext": "tab:gray", "primal": "tab:blue", "dual": "tab:red"}
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    titles = {"CIFAR-10": "ResNeXt-29, CIFAR-10", "ImageNet": "ResNeXt-50, -101, ImageNet"}
    for axis, (data, title) in zip(axes, titles.items(), strict=True):
        # ResNets have the rows of the ResNeXts that they are the baselines of.
        own = [row for row in found if row["paper_source"].startswith(data)]
        own = [row for row in own if not row["name"].startswith("resnet")]
        for kind, colour in colours.items():
            points = [row for row in own if row["kind"] == kind]
            millions = [row["parameters"] / 1e6 for row in points]
            errors = [row["paper_error"] for row in points]
            axis.plot(millions, errors, "o", color=colour, label=kind)
            for number, (row, *place) in enumerate(zip(points, millions, errors, strict=True)):
                text = row["design"] or "Wide ResNet-28-10"
                # Neighbours' labels keep out of each other's way.
                left = kind in ("resnext", "baseline") or number % 2 == 1
                below = kind == "dual" and left
                axis.annotate(
                    text,
                    place,
                    (-5 if left else 5, -9 if below else 3),
                    textcoords="offset points",
                    ha="right" if left else "left",
                    fontsize=8,
                )
        axis.set_xscale("log")
        axis.set(title=title, xlabel="parameters, millions", ylabel="the paper's test error, %")
        axis.margins(x=0.2, y=0.1)
        axis.tick_params(axis="x", which="both", labelsize=8)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.legend()
    with files.replacing(path) as part:
        figure.savefig(part, dpi=120)
    pyplot.close(figure)


def write(folder: Path) -> None:
    """All cards, the table as CSV, and the picture."""
    found = rows()
    machine = files.read_json(ZOO / "measured.json")["machine"]
    text = io.StringIO()
    table = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(found)
    pages = {"results.csv": text.getvalue(), "README.md": readme(found)}
    pages |= {f"{row['name']}.md": card(row, machine) for row in found}
    for name, content in pages.items():
        with files.replacing(folder / name) as part:
            part.write_text(content)
    draw(found, folder / "error.png")


def main() -> None:
    """Measure if asked to, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--out", type=Path, default=ZOO)
    options = parser.parse_args()
    if options.measure:
        measure()
    write(options.out)


if __name__ == "__main__":
    main()
