"""Take a few steps of a run on some devices: started by test_strategy.py in other processes."""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np

from ce_keras.training.datasets import load_dataset
from ce_keras.training.recipe import recipe_of
from ce_keras.training.strategy import find_strategy
from ce_keras.training.trainer import Trainer


def main(folder: str, asked: str) -> None:
    """Train as the JSON text `asked` says, and write losses, counts, history and weights."""
    asked = json.loads(asked)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * len(asked["devices"] or [0]),
        )
    strategy = find_strategy(asked["devices"])
    recipe = recipe_of(asked["recipe"])
    trainer = Trainer(recipe, load_dataset(recipe.data), folder, 3, asked["save_every"], strategy)
    batches = strategy.batches(trainer.input_pipeline.test)
    counts = sum(np.asarray(trainer._test_step(batch)) for batch in batches)
    step, losses = trainer._train_step, []

    def recorded(*arguments):
        result = step(*arguments)
        losses.append(np.asarray(result)[0])
        if len(losses) == asked["kill_at"]:
            os._exit(9)
        return result

    trainer._train_step = recorded
    results = trainer.run()
    name = f"losses-{'chief' if strategy.is_chief else 'worker'}.npz"
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
