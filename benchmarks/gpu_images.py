"""Images on the device, and the batches of a training: the same for all designs of a seed."""

from __future__ import annotations

import concurrent.futures
import pathlib
from typing import NamedTuple

import numpy as np
import torch
from gpu import DEVICE
from PIL import Image

BATCH_SIZE = 128


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
