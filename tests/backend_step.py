"""On any backend: load models, predict, take a training step, save. Run by test_backends."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

import ce_keras  # noqa: F401


def run_on(backend, script, *words):
    """Run a script with another backend, in a process of its own."""
    import pytest

    if backend == "torch":
        pytest.importorskip("torch", reason="`make torch` installs it")
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def main(folder):
    for part in sorted(Path(folder).iterdir()):
        data = np.load(part / "data.npz")
        model = keras.models.load_model(part / "model.keras")
        before = model.predict(data["x"], verbose=0)
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        loss = model.train_on_batch(data["x"], data["y"])
        after = model.predict(data["x"], verbose=0)
        backend = keras.backend.backend()
        np.savez(part / f"{backend}.npz", before=before, loss=loss, after=after)
        model.save(part / f"{backend}.keras")


if __name__ == "__main__":
    main(sys.argv[1])
