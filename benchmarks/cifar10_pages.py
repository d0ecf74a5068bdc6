"""The pages of the documentation about trainings on a GPU, from the results that are kept."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ce_keras import files
from ce_keras.reproduce.cifar10.trainings import SCALES, step_times
from ce_keras.reproduce.result import Result

DOCS = pathlib.Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "benchmarks/cifar10_gpu.jsonl"


def write_pages() -> None:
    """Write the reproduction's page and the benchmark's from the kept results."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    trainings = [row for row in rows if row["kind"] == "training"]
    runs = [
        {key: row[key] for key in ("regime", "design", "seed")}
        | {key: value for key, value in row["epochs"][-1].items() if key not in ("step", "seconds")}
        for row in trainings
        if row["network"] == "resnext11"
    ]
    settings = SCALES["full"]._replace(seeds=len({run["seed"] for run in runs}))
    page = DOCS / "reproduction/cifar10.json"
    times = json.loads(page.read_text())["data"].get("times", {}) if page.exists() else {}
    if not set(settings.designs) <= set(times):
        times = step_times(settings.designs)
    data = {
        "settings": settings._asdict(),
        "runs": runs,
        # Of two CPU cores: the times of the GPU are of all designs at once.
        "times": times,
        "times_on": "two CPU cores, by TensorFlow in float32",
        "device": "one NVIDIA H200 GPU, in bfloat16 by PyTorch",
        "command": "python benchmarks/cifar10_gpu.py --part resnext11 --data FOLDER --out DIR",
    }
    # All designs of a seed are trained at once: the regimes' times add up.
    seconds = sum(
        {
            (row["seed"], row["regime"]): row["epochs"][-1]["seconds"]
            for row in trainings
            if row["network"] == "resnext11"
        }.values()
    )
    Result("cifar10", "full", 0, seconds, files.plain(data)).save(DOCS / "reproduction")
    with files.replacing(DOCS / "benchmarks/cifar10_gpu.md") as part:
        part.write_text("\n".join(_benchmark_page(rows, trainings)))


def _benchmark_page(rows: list[dict[str, Any]], trainings: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the benchmark's page."""
    step = {(row["who"], row["design"]): row["ms"] for row in rows if row["kind"] == "step"}
    slower = [step["ce_keras", design] / step["timm", design] for _, design in step]
    large = [row for row in trainings if row["network"] == "resnext29"]
    lines = [
        "# On a GPU: ResNeXt-29 on CIFAR-10, and steps of ResNeXt-50",
        "",
        f"**On PyTorch a training step of our ResNeXt-50 takes {min(slower):.1f} to "
        f"{max(slower):.1f} times as long as timm's; ResNeXt-29 was not trained to the end.**",
        "",
        "One NVIDIA H200 for fifteen minutes, bfloat16, PyTorch 2.11. The trainings of the small "
        "network are on [a page of their own](../reproduction/cifar10.md).",
        "",
        "## Training step of ResNeXt-50, 128 images of 224x224",
        "",
        "| design | timm | ce_keras by Keras on PyTorch | ratio |",
        "|---|--:|--:|--:|",
    ]
    for design in dict.fromkeys(design for _, design in step):
        theirs, ours = step["timm", design], step["ce_keras", design]
        lines.append(f"| {design} | {theirs:.1f} ms | {ours:.1f} ms | {ours / theirs:.1f} |")
    lines += [
        "",
        "Measured before training used PyTorch's own batch normalisation, which Keras spells out; "
        "not measured again since. timm is called in autocast, ours with Keras' mixed policy.",
        "",
        "## Grouped 3x3 convolution, forward and backward, 128 images",
        "",
        "| groups x width, side | PyTorch's own | packs of 64 | of 128 | of 256 | masked |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in (row for row in rows if row["kind"] == "convolution"):
        ways = ("native", "64", "128", "256", "masked")
        times = " | ".join(f"{row[f'{way}, ms']:.2f} ms" for way in ways)
        lines.append(f"| {row['groups']}x{row['width']}, {row['side']} | {times} |")
    lines += [
        "",
        "A pack is a dense convolution of neighbouring groups with zeros between them; masked is "
        "one pack of all. The time was up before the other shapes.",
        "",
        "## ResNeXt-29, the schedule cut off",
        "",
        "| design | parameters | epochs of the schedule | training error | test error |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in large:
        last, planned = row["epochs"][-1], row["recipe"]["epochs"]
        lines.append(
            f"| {row['design']} | {row['params']:,} | {len(row['epochs'])} of {planned} | "
            f"{last['train_error']:.2f} % | {last['test_error']:.2f} % |"
        )
    return [
        *lines,
        "",
        "One seed, and a learning rate that had not come down to 0: only that both ensembles are "
        "below the narrower baselines of their size (1x57d and 1x74d) can be read from it, by more "
        "than half a point. [All epochs](cifar10_gpu.jsonl).",
        "",
        "`python benchmarks/gpu_speed.py --part PART`; "
        "`python benchmarks/cifar10_gpu.py --part resnext29 --data FOLDER`",
        "",
    ]
