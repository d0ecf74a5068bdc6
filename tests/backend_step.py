"""On any backend: load a model, predict, take a training step, save. Run by test_backends."""

import sys

import keras
import numpy as np

import ce_keras  # noqa: F401


def main(folder):
    data = np.load(f"{folder}/data.npz")
    model = keras.models.load_model(f"{folder}/model.keras")
    before = model.predict(data["x"], verbose=0)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    loss = model.train_on_batch(data["x"], data["y"])
    after = model.predict(data["x"], verbose=0)
    np.savez(f"{folder}/{keras.backend.backend()}.npz", before=before, loss=loss, after=after)
    model.save(f"{folder}/{keras.backend.backend()}.keras")


if __name__ == "__main__":
    main(sys.argv[1])
