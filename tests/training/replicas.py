"""A few steps of a run on some devices: run by test_devices.py in processes of their own."""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np

from ce_keras.training.devices import find_devices
from ce_keras.training.recipe import recipe_of
from ce_keras.training.run import Trainer
from ce_keras.training.sources import source_of


def main(folder: str, asked: str) -> None:
    """Train, as `asked` says in JSON, and write down what came of it."""
    asked = json.loads(asked)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * len(asked["devices"] or [0]),
        )
    devices = find_devices(asked["devices"])
    recipe = recipe_of(asked["recipe"])
    trainer = Trainer(recipe, source_of(recipe.data), folder, 3, asked["save_every"], devices)
    counts = sum(map(trainer._count, devices.batches(trainer.feed.test)))
    step, losses = trainer._step, []

    def noted(*arguments):
        loss, any_asked = step(*arguments)
        losses.append(loss)
        if len(losses) == asked["kill_at"]:
            os._exit(9)
        return loss, any_asked

    trainer._step = noted
    results = trainer.run()
    name = f"losses-{'chief' if devices.chief else 'worker'}.npz"
    weights = {f"weight_{i}": weight for i, weight in enumerate(trainer.model.get_weights())}
    synchronized = [getattr(layer, "synchronized", False) for layer in trainer.model.layers]
    np.savez(
        Path(folder) / name,
        losses=losses,
        counts=counts,
        history=json.dumps(results["history"]),
        synchronized=synchronized,
        **weights,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
