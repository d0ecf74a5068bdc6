"""The Keras objects of a recipe: its model, its loss, its learning rate and its optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from ce_keras import zoo
from ce_keras.training.optimizer import CoupledSGD, OneCycleSchedule, StepSchedule
from ce_keras.training.recipe import Recipe


def build_model(recipe: Recipe, shape: tuple[int, ...], classes: int, seed: int) -> keras.Model:
    """Return the recipe's network, with logits as its output.

    Args:
        recipe: its model section is used.
        shape: of an image.
        classes: number of classes.
        seed: for the initial weights.
    """
    model = recipe.model
    own_design = model.cardinality is not None
    options: dict[str, Any] = {
        "mode": None if own_design else model.mode,
        "cardinality": model.cardinality,
        "width": model.width,
        "classes": classes,
        "classifier_activation": None,
        "seed": seed,
        "input_shape": shape,
    }
    if model.name == "fully_connected":
        return zoo.fully_connected(depth=model.depth, base=model.base, **options)
    return zoo.NETWORKS[model.name](**options)


def build_loss(recipe: Recipe) -> Callable[[Any, Any], Any]:
    """Return the cross entropy of logits and labels, one value for each image."""
    smoothing = recipe.optimizer.label_smoothing

    def cross_entropy(logits: Any, labels: Any) -> Any:
        if not smoothing:
            return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        classes = logits.shape[-1]
        targets = ops.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        return ops.categorical_crossentropy(targets, logits, from_logits=True)

    return cross_entropy


def build_schedule(recipe: Recipe, steps: int) -> StepSchedule | OneCycleSchedule:
    """Return the recipe's learning rate, for epochs of so many steps."""
    schedule = recipe.schedule
    reference = schedule.reference_batch_size or schedule.batch_size
    learning_rate = recipe.optimizer.learning_rate * (schedule.batch_size / reference)
    if schedule.name == "one_cycle":
        return OneCycleSchedule(learning_rate, schedule.epochs * steps)
    return StepSchedule(
        learning_rate,
        [epoch * steps for epoch in schedule.divide_at],
        schedule.divide_by,
        schedule.warmup * steps,
    )


def build_optimizer(recipe: Recipe, learning_rate: Any) -> keras.optimizers.Optimizer:
    """Return the recipe's optimiser, with a schedule of the learning rate."""
    settings = recipe.optimizer
    clip = settings.clip or None
    optimizer: Any
    if settings.name == "adam":
        optimizer = keras.optimizers.Adam(learning_rate, global_clipnorm=clip)
    else:
        optimizer = CoupledSGD(
            learning_rate, settings.momentum, settings.weight_decay, global_clipnorm=clip
        )
    scaled = settings.precision == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
