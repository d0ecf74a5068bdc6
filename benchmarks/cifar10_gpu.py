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
import concurrent.futures
import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from PIL import Image
from torch_resnext import PackedConv2d, TorchResNeXt

from ce_keras import files
from ce_keras.geometry import RESNEXTS, Design, ResNeXt
from ce_keras.reproduce.cifar10 import NETWORK, SCALES, step_times
from ce_keras.reproduce.result import Result
from ce_keras.zoo.resnext import build_resnext

BEGUN = time.perf_counter()
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

RESNEXT29_DESIGNS = ("1x128d", "10x10d", "1x57d", "15x10d", "1x74d", "37x10d")

BATCH_SIZE = 128
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


class Recipe(NamedTuple):
    """How a network is trained.

    Attributes:
        epochs: of the schedule.
        learning_rate: at its highest, after a quarter of the steps; linear to it and from it.
        images: the number of training images, the first so many of every class.
        augment: whether images are shifted by up to 4 pixels and mirrored.
    """

    epochs: int
    learning_rate: float = 0.2
    images: int = 50_000
    augment: bool = True


# --- Images -------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Images in bytes, `(count, height, width, 3)`, and their classes, on the device."""

    padded: torch.Tensor
    labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor


def load(source: pathlib.Path, per_class: int | None = None) -> Images:
    """The images of the folders `train/CLASS` and `test/CLASS`; training images with a border."""
    parts: dict[str, np.ndarray] = {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for part in ("train", "test"):
            classes = sorted(entry.name for entry in (source / part).iterdir())
            names = [
                (number, file)
                for number, name in enumerate(classes)
                for file in sorted((source / part / name).iterdir())[:per_class]
            ]
            images = pool.map(lambda name: np.asarray(Image.open(name[1]).convert("RGB")), names)
            parts[part] = np.stack(list(images))
            parts[part + "_labels"] = np.array([number for number, _ in names])
    pixels = parts["train"]
    border = ((0, 0), (4, 4), (4, 4), (0, 0))

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(DEVICE)

    return Images(
        put(np.pad(pixels, border)),
        put(parts["train_labels"]),
        put(parts["test"]),
        put(parts["test_labels"]),
        put(pixels.mean((0, 1, 2)).astype(np.float32)),
        put(pixels.std((0, 1, 2)).astype(np.float32)),
    )


def normal(pixels: torch.Tensor, images: Images) -> torch.Tensor:
    """Pixels as the network takes them: channels first, in the order of memory channels last."""
    return ((pixels.float() - images.mean) / images.deviation).permute(0, 3, 1, 2)


class Plan(NamedTuple):
    """Every step of a training: `(steps, BATCH_SIZE)` each, but `rate` `(steps,)`."""

    index: torch.Tensor
    down: torch.Tensor
    across: torch.Tensor
    mirrored: torch.Tensor
    rate: torch.Tensor


def plan(recipe: Recipe, labels: np.ndarray, seed: int, most_steps: int | None) -> Plan:
    """Return the images and the learning rate of every step, the same for all designs of a seed."""
    per_class = recipe.images // 10
    kept = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)])
    whole = len(kept) // BATCH_SIZE * BATCH_SIZE
    orders = [
        np.random.default_rng([seed, epoch]).permutation(kept)[:whole]
        for epoch in range(recipe.epochs)
    ]
    index = np.concatenate(orders).reshape(-1, BATCH_SIZE)[:most_steps]
    steps, rng = len(index), np.random.default_rng([seed, 1_000_000])
    shifts = rng.integers(0, 9, (2, steps, BATCH_SIZE))
    mirrored = rng.integers(0, 2, (steps, BATCH_SIZE))
    if not recipe.augment:
        shifts, mirrored = np.full_like(shifts, 4), np.zeros_like(mirrored)
    place = (np.arange(steps) + 0.5) / steps
    rate = recipe.learning_rate * np.minimum(place / 0.25, (1 - place) / 0.75)
    arrays = (index, shifts[0], shifts[1], mirrored, rate.astype(np.float32))
    return Plan(*(torch.from_numpy(array).to(DEVICE) for array in arrays))


# --- A network and its training step ------------------------------------------------------------


def zoo_weights(shape: ResNeXt, design: Design, seed: int) -> dict[str, list[np.ndarray]]:
    """The zoo's initial weights, by layer."""
    model = build_resnext(shape, design, classifier_activation=None, seed=seed + 1)
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


class Trainer:
    """One design: its network, and a training step that can be run again for other seeds."""

    def __init__(self, shape: ResNeXt, design: str, images: Images, most_steps: int) -> None:
        self.shape, self.design, self.images = shape, Design.parse(design), images
        self.network = TorchResNeXt(shape, self.design).to(
            DEVICE, memory_format=torch.channels_last
        )
        self.layers = self.network.pairs(shape)
        self.weights = list(self.network.parameters())
        self.params = sum(weight.numel() for weight in self.weights)
        self.momentum = [torch.zeros_like(weight) for weight in self.weights]
        many = (most_steps, BATCH_SIZE)
        whole = [torch.zeros(many, dtype=torch.int64, device=DEVICE) for _ in range(4)]
        self.plan = Plan(*whole, torch.zeros(most_steps, device=DEVICE))
        self.step = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.loss = torch.zeros((), device=DEVICE)
        self.wrong = torch.zeros((), device=DEVICE)
        self.stream = torch.cuda.Stream() if CUDA else None
        self.replay: Callable[[], None] = self._step

    def start(self, seed: int, plan: Plan) -> None:
        """Set the network to the initial weights of a seed, and take the plan."""
        with torch.no_grad():
            for name, values in zoo_weights(self.shape, self.design, seed).items():
                _copy(self.layers[name], values)
            for buffer in self.momentum:
                buffer.zero_()
            for own, new in zip(self.plan, plan, strict=True):
                own[: len(new)].copy_(new)
            self.step.zero_()
            self.loss.zero_()
            self.wrong.zero_()

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        index, down, across, mirrored, rate = (
            part.index_select(0, self.step)[0] for part in self.plan
        )
        side = torch.arange(32, device=DEVICE)
        rows = down[:, None] + side
        columns = across[:, None] + torch.where(mirrored[:, None] > 0, 31 - side, side)
        pixels = self.images.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return normal(pixels, self.images), self.images.labels[index], rate

    def _step(self) -> None:
        """A step of gradient descent with momentum, on the batch that `self.step` points to."""
        pixels, labels, rate = self._batch()
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
            logits = self.network(pixels)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        slopes = list(torch.autograd.grad(loss, self.weights))
        with torch.no_grad():
            torch._foreach_mul_(self.momentum, MOMENTUM)
            torch._foreach_add_(self.momentum, slopes)
            torch._foreach_add_(self.momentum, self.weights, alpha=WEIGHT_DECAY)
            torch._foreach_sub_(self.weights, torch._foreach_mul(self.momentum, rate))
            self.loss += loss
            self.wrong += (logits.argmax(1) != labels).sum()
            self.step += 1

    def prepare(self) -> int:
        """Capture the step with the grouped convolution in its fastest form; return its packs.

        What the trial steps change, `start` sets anew.
        """
        if not CUDA:
            return 0
        graphs, seconds = {}, {}
        for channels in (0, 128, 256) if self.design.cardinality > 1 else (0,):
            for module in self.network.modules():
                if isinstance(module, PackedConv2d):
                    module.pack_channels = channels
            graphs[channels] = graph = self._capture()
            seconds[channels] = min(_seconds(graph.replay) for _ in range(5))
        best = min(seconds, key=lambda channels: seconds[channels])
        self.replay = graphs[best].replay
        return best

    def _capture(self) -> Any:
        """The training step as a CUDA graph."""
        self.step.zero_()
        synchronize()
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self._step()
        synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._step()
        return graph

    @torch.no_grad()
    def test(self) -> tuple[float, float]:
        """Error in percent and mean loss on the test images."""
        self.network.eval()
        wrong = loss = 0.0
        count = len(self.images.test_labels)
        for low in range(0, count, 1000):
            part = slice(low, low + 1000)
            labels = self.images.test_labels[part]
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = self.network(normal(self.images.test[part], self.images)).float()
            wrong += float((logits.argmax(1) != labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        self.network.train()
        return 100 * wrong / count, loss / count

    def state(self) -> dict[str, np.ndarray]:
        """The weights now, by PyTorch's names."""
        return {
            name: value.detach().contiguous().cpu().numpy()
            for name, value in self.network.state_dict().items()
            if value.ndim
        }


def _copy(layer: torch.nn.Module, values: list[np.ndarray]) -> None:
    """Give a PyTorch layer a Keras layer's weights."""
    tensors = [torch.from_numpy(np.array(value)).to(DEVICE) for value in values]
    if isinstance(layer, torch.nn.Conv2d):
        layer.weight.copy_(tensors[0].permute(3, 2, 0, 1))
    elif isinstance(layer, torch.nn.Linear):
        layer.weight.copy_(tensors[0].T)
        layer.bias.copy_(tensors[1])
    else:
        assert isinstance(layer, torch.nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        own = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        for old, new in zip(own, tensors, strict=True):
            old.copy_(new)


def _seconds(function: Callable[[], None]) -> float:
    synchronize()
    begun = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - begun


def synchronize() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


# --- The queue ----------------------------------------------------------------------------------


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


# --- Pages --------------------------------------------------------------------------------------

DOCS = pathlib.Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "benchmarks/cifar10_gpu.jsonl"


def pages() -> None:
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


def say(text: str) -> None:
    """Print with the seconds since the start."""
    print(f"[{time.perf_counter() - BEGUN:6.1f}] {text}", flush=True)


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
        pages()
        return
    if not (arguments.data and arguments.data.is_dir()):
        parser.error(f"--data: got {arguments.data}; it must be a folder of images")
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    run(arguments.part, arguments)
    say("done")


if __name__ == "__main__":
    main()
