"""Publish a finished run's weights with the package: the file, its hash, and what made it.

python benchmarks/zoo_weights.py RUN fashion_mnist "Fashion-MNIST" --run "ce-keras train ..."
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import keras
import numpy as np

from ce_keras import files, zoo
from ce_keras.training import FASHION_CLASSES
from ce_keras.training.datasets import load_dataset
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.recipe import recipe_of
from ce_keras.zoo.weights import FOLDER

CLASSES = {"fashion_mnist": FASHION_CLASSES}


def main() -> None:
    """Write the weights, the log, and the entry of the index."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", choices=CLASSES)
    parser.add_argument("title")
    parser.add_argument("--run", required=True, help="the command that trained it")
    options = parser.parse_args()
    results = files.read_json(options.folder / "results.json")
    recipe = recipe_of(results["recipe"])
    pipeline = InputPipeline(recipe, load_dataset(recipe.data), results["seed"])
    stem = f"{results['design']}-{options.data}"
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{stem}.safetensors"
    zoo.save_weights(keras.models.load_model(options.folder / "model.keras"), path)
    shutil.copy(options.folder / "history.csv", FOLDER / f"{stem}.csv")
    history = results["history"]
    index = zoo.published_weights() if (FOLDER / "index.json").exists() else {}
    index[f"{results['design']}/{options.data}"] = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "data": options.title,
        "classes": list(CLASSES[options.data]),
        "mean": np.asarray(pipeline.mean).tolist(),
        "deviation": np.asarray(pipeline.std).tolist(),
        "error": round(history[-1]["error"], 4),
        "mean_error": round(results["error"], 4),
        "averaged_over_epochs": results["averaged_over_epochs"],
        "epochs": len(history),
        "run": options.run,
        "log": f"../ce_keras/zoo/trained/{stem}.csv",
        "seed": results["seed"],
        "recipe": {**results["recipe"], "expected": {}},
        "versions": results["versions"],
        "revision": results["revision"],
    }
    files.write_json(FOLDER / "index.json", index)
    print(path, path.stat().st_size, history[-1])


if __name__ == "__main__":
    main()
