"""Make a trained classifier smaller: calibrate, train by distillation, evaluate; resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from ce_keras import checks, files
from ce_keras.geometry import Design
from ce_keras.layers.flops import flops, parameters
from ce_keras.layers.keras_internals import all_layers
from ce_keras.problem import MODES, Mode
from ce_keras.progress import progress
from ce_keras.resumable import ResumableResults
from ce_keras.rewrite import collegialize, inspect
from ce_keras.rewrite.building import rebuilt
from ce_keras.rewrite.calibration.data import LEAST, MOST
from ce_keras.rewrite.calibration.designs import COMPARE_SMALLER, check_smaller
from ce_keras.rewrite.calibration.reconstruction import FEW_STEPS
from ce_keras.rewrite.timing import step_seconds
from ce_keras.saving import load_model
from ce_keras.training.datasets import TRAIN, Dataset, image_folder, load_dataset
from ce_keras.training.input_pipeline import InputPipeline
from ce_keras.training.recipe import Normalize, Recipe, read_recipe, recipe_of

#: More epochs are taken for a mistake.
MOST_EPOCHS = 10_000

# Images of the training step that is timed, and that show what a model's outputs are.
_FEW = 64

# Largest distance of a sum of probabilities from 1, in half precision too.
_ROUNDING = 1e-2


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
            names are the model's classes, or of IDX files; or `"embedded"`, Fashion-MNIST. Coloured
            image files of another size than the model's input are cropped and resized.
        save: the `.keras` file to write.
        mode: as for `collegialize`.
        target: the smaller model's parameters over the model's, such as 0.5; `mode` is
            then ignored.
        design: as for `collegialize`; by default the nearest of several of the optimum's size.
        epochs: of training; 0 for none.
        images: number of training images to calibrate on, after augmentation; at most 5,000.
        batch_size: images in a training step.
        learning_rate: the first, which falls to zero as a cosine.
        normalize: what is done to the images' bytes, as in a recipe; `"none"` for images that are
            resized, unless `augment` has `"resized_crop"`.
        augment: of training images, as in a recipe.
        seed: for everything that is drawn.

    Raises:
        ValueError: for a model that is no such classifier, that is frozen, or whose outputs are
            neither probabilities nor logits; for images that do not fit it; for arguments that are
            out of range; or where another call is under way.
    """
    model, save = checks.file_path("model", model), checks.file_path("save", save)
    if save.suffix != ".keras":
        raise ValueError(f"save: got {str(save)!r}; it must end in .keras")
    files.check_other("save", save, model)
    checks.one_of("mode", mode, MODES)
    if target is not None:
        target = checks.finite_number("target", target, above=0)
    elif mode == "primal" and design == "calibrated":
        raise ValueError(COMPARE_SMALLER)
    epochs = checks.whole_number("epochs", epochs, 0, MOST_EPOCHS)
    images = checks.whole_number("images", images, LEAST, MOST)
    batch_size = checks.positive_int("batch_size", batch_size)
    learning_rate = checks.finite_number("learning_rate", learning_rate, above=0)
    seed = checks.whole_number("seed", seed, 0, checks.MOST)
    if str(data) != "embedded" and not checks.file_path("data", data).is_dir():
        raise ValueError(f"data: got {checks.brief(str(data))}; it must be a folder, or 'embedded'")
    recipe = _recipe(str(data), normalize, augment, batch_size)
    asked = None if design == "calibrated" else Design.parse(design)
    size = {"mode": mode} if target is None else {"mode": "primal", "target": target}
    teacher = load_model(model)
    if epochs and not teacher.trainable_variables:
        raise ValueError(
            f"model: no layer of {teacher.name!r} is trainable, and the smaller model would have "
            "none either; set trainable, or give epochs=0"
        )
    settings = {**size, "design": design, "seed": seed}
    trained = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    read = {"data": str(data), "normalize": normalize, "augment": augment, "images": images}
    key = {"model": hashlib.sha256(model.read_bytes()).hexdigest(), **settings, **trained, **read}
    folder = save.with_name(f".{save.stem}.compress")
    with files.exclusive("save", save):
        begun = ResumableResults(folder / "progress.json", key, "save")
        # What cannot be done is said before long work.
        if "calibrated" not in begun.done:
            report = inspect(teacher, **size, design=asked, seed=seed)
            if not report.candidates:
                raise ValueError(f"model: {report}\ngive a target, such as 0.5")
            if asked is None:
                check_smaller(report.before, report.after)
        batches, steps = _pipeline(teacher, recipe, seed)
        _check_images(begun, batches, folder)
        logits = epochs > 0 and not _gives_probabilities(teacher, batches)
        smaller = _calibrated(teacher, batches, folder, begun, images, settings)
        if epochs:
            rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
            with _trainable_kept(teacher):
                state = folder / "state.npz"
                _distil(teacher, smaller, batches, state, rate, epochs, steps, logits)
        found = _compared(teacher, smaller, batches, batch_size, begun.done["calibrated"])
        with files.replacing(save) as part:
            smaller.save(part)
        shutil.rmtree(folder)
    return found


def _recipe(source: str, normalize: Any, augment: Any, batch_size: int) -> Recipe:
    """Return a recipe of the images, checked; its other sections are not used."""
    usual = read_recipe("fashion_mnist").to_dict()
    name = "fashion_mnist" if source == "embedded" else "images"
    data = {"name": name, "source": source, "augment": augment, "normalize": normalize}
    schedule = {**usual["schedule"], "batch_size": batch_size}
    return recipe_of({**usual, "data": data, "schedule": schedule}, "compress")


def _pipeline(model: keras.Model, recipe: Recipe, seed: int) -> tuple[InputPipeline, int]:
    """Return the images as the model reads them, and the training steps of an epoch."""
    shape: tuple[Any, ...] = model.input_shape if len(model.inputs) == 1 else ()
    if len(shape) != 4 or None in shape[1:] or len(model.outputs) != 1:
        raise ValueError(
            f"model: {model.name!r} has inputs {[tuple(x.shape) for x in model.inputs]}; it must "
            "have one, images of a known size, and one output"
        )
    data = recipe.data
    kept = tuple(each for each in data.augment if each != "resized_crop")
    folder = image_folder(dataclasses.replace(data, augment=kept))
    found: Dataset = load_dataset(data) if folder is None else folder
    if found.shape[2] != shape[3]:
        raise ValueError(f"data: its images have {found.shape[2]} channels, the model {shape[3]}")
    if model.output_shape[1:] != (found.classes,):
        raise ValueError(
            f"data: it has {found.classes} classes, and the model's output is "
            f"{model.output_shape[1:]}"
        )
    differ = found.shape[:2] != shape[1:3]
    if folder is not None and (differ or "resized_crop" in data.augment):
        data = dataclasses.replace(data, augment=(*kept, "resized_crop"), size=shape[1])
    dataset = found if folder is None else load_dataset(data)
    if tuple(dataset.shape) != shape[1:]:
        raise ValueError(
            f"data: its images are {found.shape}, and the model's {shape[1:]}; only files of "
            "coloured images are resized, to squares"
        )
    asked = "resized_crop" in recipe.data.augment and shape[3] == 3
    if "resized_crop" in data.augment and not asked and data.normalize != "none":
        raise ValueError(
            f"normalize: got {data.normalize!r}; resized images are normalised by ImageNet's "
            "constants; resize the files, or put the normalisation into the model"
        )
    steps = -(-dataset.counts[TRAIN] // recipe.schedule.batch_size)
    return InputPipeline(dataclasses.replace(recipe, data=data), dataset, seed), steps


def _check_images(begun: ResumableResults, batches: InputPipeline, folder: Path) -> None:
    """Raise where a stopped call read other images than there are now."""
    now = batches.fingerprint
    if begun.done.setdefault("images", now) != now:
        raise ValueError(
            f"save: {folder} holds a call that was begun with other images; restore them, or "
            "delete it to begin again"
        )


def _calibrated(
    teacher: keras.Model,
    batches: InputPipeline,
    folder: Path,
    begun: ResumableResults,
    images: int,
    settings: dict[str, Any],
) -> keras.Model:
    """Return the smaller network as it begins its training."""
    path, seed = folder / "calibrated.keras", settings["seed"]
    if "calibrated" in begun.done:
        return _seeded(load_model(path), seed)
    (folder / "state.npz").unlink(missing_ok=True)  # A stopped call's with other arguments.
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
    return _seeded(smaller, seed)


def _seeded(model: keras.Model, seed: int) -> keras.Model:
    """Return the model, with generators of random numbers that begin at a seed, as in `Dropout`."""
    weights = {id(each) for each in model.weights}
    own = keras.random.SeedGenerator(0).state
    for number, state in enumerate(each for each in model.variables if id(each) not in weights):
        if (tuple(state.shape), state.dtype) == (tuple(own.shape), own.dtype):
            state.assign([seed % 2**32, number])
    return model


def _distil(
    teacher: keras.Model,
    smaller: keras.Model,
    batches: InputPipeline,
    state: Path,
    rate: Any,
    epochs: int,
    steps: int,
    logits: bool,
) -> None:
    """Train the smaller network, with the teacher's outputs and the labels; go on if stopped."""
    by_features = keras.distillation.FeatureDistillation(loss="kl_divergence")
    loss = keras.distillation.LogitsDistillation() if logits else by_features
    learner = keras.distillation.Distiller(teacher, smaller, loss)
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    # Few steps are taken as they come: tracing a deep network takes a minute.
    eager = keras.backend.backend() == "tensorflow" and epochs * steps <= FEW_STEPS
    learner.compile(keras.optimizers.Adam(rate), labels, run_eagerly=eager)
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
            values: Any = {str(number): np.asarray(each) for number, each in enumerate(variables)}
            with files.replacing(state) as part:
                np.savez(part, epoch=np.array(epoch + 1), **values)


@contextlib.contextmanager
def _trainable_kept(model: keras.Model) -> Iterator[None]:
    """Restore afterwards which layers are trained: Keras' `Distiller` freezes the teacher."""
    # A layer comes before those inside it, which it changes too.
    flags = [(layer, layer.trainable) for layer in all_layers(model)]
    try:
        yield
    finally:
        for layer, trainable in flags:
            layer.trainable = trainable


def _gives_probabilities(model: keras.Model, batches: InputPipeline) -> bool:
    """Return whether outputs for some test images are probabilities of classes, not logits."""
    images, _ = next(iter(batches.test().unbatch().batch(_FEW)))
    outputs = keras.ops.convert_to_numpy(model(np.asarray(images))).astype(np.float64)
    if not (outputs.min() >= 0 and outputs.max() <= 1 + _ROUNDING):
        return False
    if np.allclose(outputs.sum(axis=-1), 1, rtol=0, atol=_ROUNDING):
        return True
    raise ValueError(
        f"model: its output {model.outputs[0].name!r} has numbers from 0 to 1 that do not add up "
        "to 1, as of a sigmoid; it must have probabilities, as of a softmax, or logits"
    )


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
    seconds = step_seconds(copies, min(batch_size, _FEW))
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
