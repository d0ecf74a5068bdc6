"""Train designs on CIFAR-10 on a GPU in minutes: PyTorch in bfloat16, no TensorFlow.

The networks are the zoo's with the zoo's initial weights, copied into plain PyTorch layers.
Images, their order and their augmentation are on the device before training begins, and are the
same for all designs of a seed. A training step is one CUDA graph; the designs of a seed are
trained side by side, each on a stream of its own.

`--part` says what to run:

- `resnext11`: designs of a small network at the baseline's size and at the dual's, on all images,
  and on 5,000 images without augmentation;
- `resnext29`: the paper's network: baseline, duals, primal and the narrower baselines;
- `pages`: the pages of the documentation, from the results in `docs/benchmarks/cifar10_gpu.jsonl`.

Every result is a line of JSON in `--out`, written as it ends. Without a GPU everything runs too,
slowly: `--per-class 20 --most-steps 4` tries it out.

    KERAS_BACKEND=torch python benchmarks/cifar10_gpu.py --part resnext29 --data FOLDER --out DIR
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from cifar10_pages import write_pages
from gpu import BEGUN, CUDA, say, synchronize
from gpu_images import BATCH_SIZE, Recipe, load, plan
from gpu_trainer import Trainer

from ce_keras.geometry import RESNEXTS
from ce_keras.reproduce.cifar10.designs import NETWORK
from ce_keras.reproduce.cifar10.trainings import SCALES

RESNEXT29_DESIGNS = ("1x128d", "10x10d", "1x57d", "15x10d", "1x74d", "37x10d")


def rounds(trainers: Iterable[Trainer], count: int) -> None:
    """Take `count` steps of every network, side by side."""
    for _ in range(count):
        for trainer in trainers:
            with torch.cuda.stream(trainer.stream) if CUDA else contextlib.nullcontext():
                trainer.replay()
    synchronize()


class Session:
    """The trainings of one part: compiled once, run seed by seed until the time is up."""

    def __init__(self, part: str, arguments: argparse.Namespace) -> None:
        self.part, self.arguments = part, arguments
        self.images = load(arguments.data, arguments.per_class)
        self.labels = self.images.labels.cpu().numpy()
        self.per_epoch = max(1, len(self.labels) // BATCH_SIZE)
        say(f"{len(self.labels)} images, {len(self.images.test_labels)} for the test")
        shape = RESNEXTS["resnext29" if part == "resnext29" else NETWORK]
        default = RESNEXT29_DESIGNS if part == "resnext29" else SCALES["full"].designs
        most = (max(arguments.epochs, 24) + 1) * self.per_epoch
        self.trainers = []
        trial = plan(Recipe(1), self.labels, 0, 3 * self.per_epoch)
        for design in arguments.designs or default:
            trainer = Trainer(shape, design, self.images, most)
            trainer.start(0, trial)
            packs = trainer.prepare()
            self.trainers.append(trainer)
            say(f"{design}: {trainer.params:,} parameters, packs of {packs or 'one group'}")

    def step_seconds(self) -> float:
        """Time of a step of all networks."""
        trial = plan(Recipe(1), self.labels, 0, None)
        for trainer in self.trainers:
            trainer.start(0, trial)
        synchronize()
        many = min(20, self.per_epoch)
        rounds(self.trainers, 5 if many == 20 else 1)
        begun = time.perf_counter()
        rounds(self.trainers, many)
        return (time.perf_counter() - begun) / many

    def train(self, regime: str, recipe: Recipe, seed: int) -> None:
        """Train all networks with one seed."""
        steps = plan(recipe, self.labels, seed, self.arguments.most_steps)
        for trainer in self.trainers:
            trainer.start(seed, steps)
        synchronize()
        count, begun = len(steps.rate), time.perf_counter()
        logs: list[list[dict[str, float]]] = [[] for _ in self.trainers]
        done = 0
        while done < count:
            many = min(self.per_epoch, count - done)
            for trainer in self.trainers:
                trainer.loss.zero_()
                trainer.wrong.zero_()
            synchronize()
            rounds(self.trainers, many)
            done += many
            seconds = time.perf_counter() - begun
            for log, trainer in zip(logs, self.trainers, strict=True):
                error, loss = trainer.test()
                row = {
                    "step": done,
                    "train_loss": float(trainer.loss) / many,
                    "train_error": 100 * float(trainer.wrong) / many / BATCH_SIZE,
                    "test_error": error,
                    "test_loss": loss,
                    "seconds": seconds,
                }
                log.append({key: round(value, 4) for key, value in row.items()})
            self._write("progress", regime, recipe, seed, [log[-1:] for log in logs], "a")
        self._write("results", regime, recipe, seed, logs, "a")
        for log, trainer in zip(logs, self.trainers, strict=True):
            last = log[-1]
            say(
                f"{regime}, seed {seed}, {trainer.design}: training loss {last['train_loss']:.3f}, "
                f"error {last['train_error']:.2f}%; test error {last['test_error']:.2f}%"
            )
        say(f"{regime}, seed {seed}: {time.perf_counter() - begun:.1f} s")

    def _write(
        self, kind: str, regime: str, recipe: Recipe, seed: int, logs: list[Any], mode: str
    ) -> None:
        path = self.arguments.out / f"{self.part}_{kind}.jsonl"
        device = torch.cuda.get_device_name() if CUDA else "CPU"
        with path.open(mode) as file:
            for log, trainer in zip(logs, self.trainers, strict=True):
                row = {
                    "network": self.part,
                    "regime": regime,
                    "design": str(trainer.design),
                    "params": trainer.params,
                    "seed": seed,
                    "recipe": recipe._asdict(),
                    "device": device,
                    "epochs": log,
                }
                file.write(json.dumps(row) + "\n")

    def save(self, designs: Iterable[str], dtype: str) -> None:
        """Write the weights of some networks, as they are now."""
        for trainer in self.trainers:
            if str(trainer.design) in designs:
                state = {name: value.astype(dtype) for name, value in trainer.state().items()}
                path = self.arguments.out / f"{self.part}_{trainer.design}.npz"
                np.savez(path, **state)  # type: ignore[arg-type]


def run(part: str, arguments: argparse.Namespace) -> None:
    """Run the trainings of a part until the time is up, all designs of a seed at a time."""
    session = Session(part, arguments)
    step = session.step_seconds()
    epoch = step * session.per_epoch
    say(f"a step of all: {1e3 * step:.2f} ms; an epoch of all: {epoch:.1f} s")
    end = BEGUN + 60 * arguments.minutes
    test = 0.03 * len(session.trainers)  # Seconds an epoch, beside the steps.
    epochs = arguments.epochs
    if part == "resnext29":
        # As many epochs as fit for the seeds that are wanted.
        share = (end - time.perf_counter()) / arguments.seeds - 3
        epochs = max(1, min(epochs, int(share / (epoch + 2 * test))))
    whole = ("all images", Recipe(epochs, 0.1 if part == "resnext29" else 0.2))
    few = ("5,000 images", Recipe(60, 0.1, 5_000, augment=False))
    regimes = [whole, few] if part == "resnext11" else [whole]
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for regime, recipe in regimes:
            steps = recipe.epochs * min(recipe.images, len(session.labels)) // BATCH_SIZE
            need = 1.05 * (steps * step + (steps / session.per_epoch + 2) * test)
            if time.perf_counter() + need > end and not arguments.most_steps:
                say(f"no time for {regime}, seed {seed}: {need:.0f} s")
                continue
            session.train(regime, recipe, seed)
            if regime == "all images" and seed == arguments.seed:
                session.save(arguments.save, "float16" if part == "resnext29" else "float32")


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = ["resnext11", "resnext29", "pages"]
    parser.add_argument("--part", choices=parts, required=True)
    parser.add_argument("--data", type=pathlib.Path, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/cifar10_gpu"))
    parser.add_argument("--minutes", type=float, default=8, help="from the start of the command")
    parser.add_argument("--epochs", type=int, default=20, help="of all images, at most")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--designs", nargs="*", help="only these")
    parser.add_argument("--save", nargs="*", default=[], help="designs whose weights are written")
    parser.add_argument("--most-steps", type=int, help="of a training, to try the command out")
    parser.add_argument("--per-class", type=int, help="only so many images of a class")
    arguments = parser.parse_args()
    if arguments.part == "pages":
        write_pages()
        return
    if not (arguments.data and arguments.data.is_dir()):
        parser.error(f"--data: got {arguments.data}; it must be a folder of images")
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    run(arguments.part, arguments)
    say("done")


if __name__ == "__main__":
    main()
