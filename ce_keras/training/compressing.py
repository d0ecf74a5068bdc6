"""Make a trained classifier smaller: calibrate, train by distillation, evaluate; resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from ce_keras import files
from ce_keras.checks import (
    brief,
    checked_seed,
    file_path,
    finite_number,
    positive_int,
    whole_number,
)
from ce_keras.geometry import Design
from ce_keras.layers.flops import flops, parameters
from ce_keras.layers.keras_internals import function_name
from ce_keras.problem import Mode
from ce_keras.progress import progress
from ce_keras.resumable import ResumableResults
from ce_keras.rewrite import collegialize, inspect
from ce_keras.rewrite.building import rebuilt
from ce_keras.rewrite.calibration.data import LEAST, MOST
from ce_keras.rewrite.calibration.graph import FlatGraph
from ce_keras.rewrite.timing import step_seconds
from ce_keras.saving import load_model
from ce_keras.training.datasets import TRAIN, Dataset, describe, load_dataset
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.recipe import DataRecipe, read_recipe

#: More epochs are taken for a mistake.
MOST_EPOCHS = 10_000

#: Images of the training step that is timed.
_TIMED = 64

Normalize = Literal["none", "channel", "global", "mean_image"]


class Compression(NamedTuple):
    """What a compressed model costs and how well it does, beside the trained one.

    Attributes:
        design: of the smaller network.
        params: trained parameters of the model, and of the smaller one.
        flops: of an image; `None` where they are not known.
        step_seconds: of a training step of 64 images, or of a batch if that is smaller.
        errors: test errors in percent.
        agreement: test images that both put into the same class, in percent.
        report: of `collegialize`, as text.
    """

    design: str
    params: tuple[int, int]
    flops: tuple[int | None, int | None]
    step_seconds: tuple[float, float]
    errors: tuple[float, float]
    agreement: float
    report: str


def compress(
    model: str | Path,
    data: str | Path,
    save: str | Path,
    mode: Mode = "dual",
    *,
    target: float | None = None,
    design: str = "calibrated",
    epochs: int = 3,
    images: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 3e-4,
    normalize: Normalize = "none",
    augment: tuple[str, ...] = (),
    seed: int = 0,
) -> Compression:
    """Make a trained classifier smaller, and write it.

    The smaller network is calibrated (`collegialize(init="calibrated")`), then trained by Adam with
    the model as teacher (`keras.distillation`), half of the loss from the labels. Where a call was
    stopped, the same call goes on: progress lies beside `save`, until that is written.

    Args:
        model: a `.keras` file with one input, images, and one output, a number for each class.
        data: a folder with `train/CLASS` and `test/CLASS` (or `val`) of image files, whose sorted
            names are the model's classes, or of IDX files; or `"embedded"`, Fashion-MNIST. Files of
            another size than the model's input are cropped and resized.
        save: the `.keras` file to write.
        mode: as for `collegialize`.
        target: the smaller model's parameters over the model's, such as 0.5,
            instead of a mode.
        design: as for `collegialize`; by default the nearest of several of the optimum's size.
        epochs: of training; 0 for none.
        images: training images that are calibrated on, at most 5,000.
        batch_size: images in a training step.
        learning_rate: the first, which falls to zero as a cosine.
        normalize: what is done to the images' bytes, as in a recipe.
        augment: of training images, as in a recipe.
        seed: for everything that is drawn.

    Raises:
        ValueError: for a model that is no such classifier, or another number of classes; for
            arguments that are out of range; or where another call is under way.
    """
    model, save = file_path("model", model), file_path("save", save)
    if save.suffix != ".keras":
        raise ValueError(f"save: got {str(save)!r}; it must end in .keras")
    whole_number("epochs", epochs, 0, MOST_EPOCHS)
    whole_number("images", images, LEAST, MOST)
    positive_int("batch_size", batch_size)
    finite_number("learning_rate", learning_rate, above=0)
    checked_seed(seed)
    if str(data) != "embedded" and not file_path("data", data).is_dir():
        raise ValueError(f"data: got {brief(str(data))}; it must be a folder, or 'embedded'")
    asked = None if design == "calibrated" else Design.parse(design)
    size = {"mode": mode} if target is None else {"mode": "primal", "target": target}
    teacher = load_model(model)
    report = inspect(teacher, **size, design=asked)  # What cannot be done is said before long work.
    if not report.candidates:
        raise ValueError(f"model: {report}")
    batches, dataset = _pipeline(teacher, str(data), normalize, augment, batch_size, seed)
    settings = {**size, "design": design, "seed": seed}
    trained = {
        "images": images,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    read = {"data": str(data), "normalize": normalize, "augment": list(augment)}
    key = {"model": hashlib.sha256(model.read_bytes()).hexdigest(), **settings, **trained, **read}
    folder = save.with_name(f".{save.stem}.compress")
    with files.exclusive("save", save):
        begun = ResumableResults(folder / "progress.json", key, "save")
        smaller = _calibrated(teacher, batches, folder, begun, images, settings)
        steps = -(-dataset.counts[TRAIN] // batch_size)
        if epochs:
            rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
            _distil(teacher, smaller, batches, folder / "state.npz", rate, epochs, steps)
        found = _compared(teacher, smaller, batches, batch_size, begun.done["calibrated"])
        with files.replacing(save) as part:
            smaller.save(part)
        shutil.rmtree(folder)
    return found


def _pipeline(
    model: keras.Model,
    source: str,
    normalize: str,
    augment: tuple[str, ...],
    batch_size: int,
    seed: int,
) -> tuple[InputPipeline, Dataset]:
    """Return the images as the model reads them."""
    shape: tuple[Any, ...] = model.input_shape if len(model.inputs) == 1 else ()
    if len(shape) != 4 or None in shape[1:] or len(model.outputs) != 1:
        raise ValueError(
            f"model: {model.name!r} has inputs {[tuple(x.shape) for x in model.inputs]}; it must "
            "have one, images of a known size, and one output"
        )
    name = "fashion_mnist" if source == "embedded" else "images"
    data = DataRecipe(name, source, tuple(augment), normalize=normalize)
    found: Any = load_dataset(data) if source == "embedded" else describe(data)
    if tuple(found.shape[:2]) != tuple(shape[1:3]):
        if source == "embedded":
            raise ValueError(f"data: Fashion-MNIST is {found.shape}, and the model's {shape[1:]}")
        if shape[1] != shape[2]:
            raise ValueError(
                f"data: its images are {found.shape}, and the model's are not square: {shape[1:]}"
            )
        resized = tuple(dict.fromkeys((*augment, "resized_crop")))
        data = dataclasses.replace(data, augment=resized, size=shape[1])
    if found.shape[2] != shape[3]:
        raise ValueError(f"data: its images have {found.shape[2]} channels, the model {shape[3]}")
    if model.output_shape[1:] != (found.classes,):
        raise ValueError(
            f"data: it has {found.classes} classes, and the model's output is "
            f"{model.output_shape[1:]}"
        )
    usual = read_recipe("fashion_mnist")
    schedule = dataclasses.replace(usual.schedule, batch_size=batch_size)
    dataset = found if source == "embedded" else load_dataset(data)
    recipe = dataclasses.replace(usual, data=data, schedule=schedule)
    return InputPipeline(recipe, dataset, seed), dataset


def _calibrated(
    teacher: keras.Model,
    batches: InputPipeline,
    folder: Path,
    begun: ResumableResults,
    images: int,
    settings: dict[str, Any],
) -> keras.Model:
    """Return the smaller network as it begins its training."""
    path = folder / "calibrated.keras"
    if "calibrated" in begun.done:
        return load_model(path)
    parts: list[np.ndarray] = []
    for x, _ in batches.train(0):
        parts.append(np.asarray(x))
        if sum(map(len, parts)) >= images:
            break
    data = np.concatenate(parts)[:images]
    smaller = collegialize(teacher, init="calibrated", data=data, **settings)
    with files.replacing(path) as part:
        smaller.save(part)
    designs = dict.fromkeys(str(each.design) for each in smaller.report.decisions)
    begun.keep("calibrated", {"design": ", ".join(designs), "report": repr(smaller.report)})
    return smaller


def _distil(
    teacher: keras.Model,
    smaller: keras.Model,
    batches: InputPipeline,
    state: Path,
    rate: Any,
    epochs: int,
    steps: int,
) -> None:
    """Train the smaller network, with the teacher's outputs and the labels; go on if stopped."""
    logits = not _gives_probabilities(teacher)
    distillation = keras.distillation
    loss = (
        distillation.LogitsDistillation()
        if logits
        else distillation.FeatureDistillation(loss="kl_divergence")
    )
    learner = distillation.Distiller(teacher, smaller, loss)
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    learner.compile(keras.optimizers.Adam(rate), labels)
    learner.optimizer.build(learner.trainable_variables)
    variables = [*smaller.variables, *learner.optimizer.variables]
    first = 0
    if state.exists():
        with np.load(state) as saved:
            first = int(saved["epoch"])
            for number, variable in enumerate(variables):
                variable.assign(saved[str(number)])
    with progress(total=epochs * steps, initial=first * steps, desc="distilling") as bar:
        shown = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: bar.update())
        for epoch in range(first, epochs):
            learner.fit(
                batches.train(epoch),
                initial_epoch=epoch,
                epochs=epoch + 1,
                shuffle=False,  # The batches are.
                verbose=0,
                callbacks=[shown],
            )
            values: dict[str, Any] = {"epoch": np.array(epoch + 1)}
            values |= {str(number): np.asarray(each) for number, each in enumerate(variables)}
            with files.replacing(state) as part:
                np.savez(part, **values)


def _gives_probabilities(model: keras.Model) -> bool:
    """Return whether a softmax gives the output, also at the end of a model within the model."""
    graph = FlatGraph(model)
    last = next(call.operation for call in graph.calls if call.outputs[0] is graph.outputs[0])
    softmax = isinstance(last, keras.layers.Softmax) or function_name(last) == "Softmax"
    return softmax or getattr(last, "activation", None) is keras.activations.softmax


def _compared(
    teacher: keras.Model,
    smaller: keras.Model,
    batches: InputPipeline,
    batch_size: int,
    calibrated: dict[str, Any],
) -> Compression:
    both = (teacher, smaller)
    right, same, count = np.zeros(2), 0, 0
    for x, y in progress(batches.test(), desc="testing"):
        labels = np.asarray(y)
        found = [keras.ops.convert_to_numpy(each(np.asarray(x))).argmax(-1) for each in both]
        right += [np.sum(own == labels) for own in found]
        same += int(np.sum(found[0] == found[1]))
        count += len(labels)
    work: list[int | None] = []
    for each in both:
        work.append(None)
        with contextlib.suppress(ValueError):  # Of a layer whose FLOPs are not known.
            work[-1] = flops(each)
    copies = [rebuilt(each, compiled=False)[0] for each in both]  # Timing trains them.
    for copy in copies:
        copy.trainable = True  # The teacher was frozen.
    seconds = step_seconds(copies, min(batch_size, _TIMED))
    errors = 100 * (1 - right / count)
    return Compression(
        calibrated["design"],
        (parameters(teacher), parameters(smaller)),
        (work[0], work[1]),
        (seconds[0], seconds[1]),
        (float(errors[0]), float(errors[1])),
        100 * same / count,
        calibrated["report"],
    )
