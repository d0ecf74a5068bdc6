"""Valid values of arguments, made once, and what several tables of arguments share."""

import dataclasses
import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
from bad_values import (
    HUGE,
    LEFT_OUT,
    Made,
    choice,
    count,
    flag,
    model,
    number,
    seed,
    sizes,
    source,
    text,
    thing,
    whole_numbers,
)

import ce_keras
from ce_keras.geometry import ResNeXt, bottleneck, conv


@functools.cache
def dense_model(outputs=2):
    """A small network with two hidden layers."""
    import keras

    layers = [keras.layers.Dense(8, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(outputs)])


@functools.cache
def small_resnext():
    return ce_keras.zoo.create("resnext11_1x2d", classes=3)


def network_of(width):
    import keras

    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(1)]
    )


def tuned(hp):
    import keras

    width = hp.Int("width", 1, 64) * hp.Int("cardinality", 1, 8)
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(width), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    return net


@functools.cache
def solution():
    return ce_keras.search("resnext11")


@functools.cache
def alpha_fit():
    return ce_keras.ntk.fit_alpha(bottleneck(8, 8), draws=20, seed=0)


@functools.cache
def result():
    return ce_keras.reproduce.reproduce("table2")


@functools.cache
def recipe():
    changes = {"model.name": "fully_connected", "model.depth": "2", "model.base": "4"}
    changes |= {"model.mode": "baseline", "data.limit": "20", "data.test_limit": "20"}
    changes |= {"schedule.epochs": "1", "schedule.divide_at": "[]", "schedule.warmup": "0"}
    return ce_keras.training.read_recipe("fashion_mnist", changes)


@functools.cache
def finished_run():
    """A folder as `train` leaves it."""
    from ce_keras.training.building import build_model

    folder = Path("finished").absolute()
    folder.mkdir(exist_ok=True)
    content = {"recipe": recipe().to_dict(), "seed": 0}
    (folder / "recipe.json").write_text(json.dumps(content))
    build_model(recipe(), (28, 28, 1), 10, seed=0).save(folder / "model.keras")
    return folder


@functools.cache
def saved_weights():
    path = Path("weights.safetensors").absolute()
    ce_keras.zoo.save_weights(small_resnext(), path)
    return path


@functools.cache
def saved_model():
    path = Path("model.keras").absolute()
    dense_model().save(path)
    return path


@functools.cache
def saved_classifier():
    """A file of a model of the embedded images."""
    import keras

    steps = [keras.layers.Flatten(), *(keras.layers.Dense(n, "relu") for n in (8, 8))]
    path = Path("classifier.keras").absolute()
    steps += [keras.layers.Dense(10, "softmax")]
    keras.Sequential([keras.Input((28, 28, 1)), *steps]).save(path)
    return path


@functools.cache
def saved_result():
    folder = Path("results").absolute()
    result().save(folder)
    return folder / "table2.json"


_numbers = itertools.count()


def fresh_path(suffix=""):
    return Path(f"fresh{next(_numbers)}{suffix}").absolute()


def lora_layer():
    layer = ce_keras.layers.CollegialDense(4, 2)
    layer.build((None, 4))
    return layer


@functools.cache
def ensemble():
    return ce_keras.layers.CollegialEnsemble(dense_model, 3)


@functools.cache
def regressor():
    made = ce_keras.ntk.NTKRegressor(dense_model())
    return made.fit(X, np.zeros((4, 2)))


def oracle():
    import keras_tuner

    return keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=2)


def hyperparameters():
    import keras_tuner

    return keras_tuner.HyperParameters()


def fixed_hyperparameters():
    hp = hyperparameters()
    hp.Fixed("cardinality", 1)
    hp.Fixed("width", 2)
    return hp


@functools.cache
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    return ce_keras.training.Images(pixels, np.arange(20) % 5)


def keras_input(shape):
    import keras

    return keras.Input(shape)


def plan_path(n):
    return [conv(8, n, 3), conv(n, 8, 3)]


X = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], "float32")


KERNEL = np.array([[2.0, 1.0], [1.0, 3.0]])


TINY = ResNeXt((1,), 4, 4, 8, 3, 1, False, (8, 8, 3), 3)


def alpha_argument(*texts_too):
    """The law's constant."""
    argument = number(1.6, above=0)
    return dataclasses.replace(
        argument, drawn=argument.drawn.filter(lambda value: value not in texts_too)
    )


NO_MAP = sizes(3).but("what stands for no map has none", "0", "0 in it", "drawn")


SEARCHED = {
    "baseline": thing("resnext11").also(an_empty_text="", not_a_path="resnext11-2x3d"),
    "mode": choice("primal", "dual"),
    "alpha": alpha_argument("closed_form"),
    "budget": choice("params", "flops", ("params", "flops"))
    .but("a function is a budget of its own; see below", "a function")
    .also(
        a_function_of_no_arguments=lambda: 1,
        a_function_that_gives_a_text=lambda m, n: "a",
        a_function_that_gives_nothing=lambda m, n: None,
        a_function_that_gives_NaN=lambda m, n: math.nan,
    ),
    "tolerance": number(0.02, least=0),
    "multiple_of": count(2),
    "widths": whole_numbers([4, 8]),
}

#: What a search of a Keras model takes too.
TIMED = {
    "target": number(0.5, above=0).also(of_no_network=1e-9),
    "batch": count(8),
    "phase": choice("train", "infer"),
    "remeasure": flag(False),
}


# A law is refused beside an alpha, which has a case of its own.
BY_LAW = thing({1: 2.0, 64: 0.1}).also(
    an_empty_table={},
    texts_in_it={"a": "b"},
    a_negative_variance={1: -1.0, 64: 0.1},
    NaN_in_it={1: math.nan, 64: 0.1},
    a_width_of_0={0: 1.0, 64: 0.1},
    of_no_arguments=lambda: 1,
    that_gives_a_text=lambda n: "a",
    that_gives_NaN=lambda n: math.nan,
)


REWRITTEN = {
    "model": model(Made(dense_model)),
    "mode": choice("primal", "dual"),
    "alpha": alpha_argument("closed_form", "fit"),
    "budget": SEARCHED["budget"].but(
        "beside a design, it is not called",
        "a function of no arguments",
        "a function that gives a text",
        "a function that gives nothing",
        "a function that gives NaN",
    ),
    "tolerance": SEARCHED["tolerance"],
    "multiple_of": count(2),
    "design": choice("2x4d").also(
        zeros=(0, 0), a_pair_of_texts=("a", "b"), one_number=(3,), too_wide="2x900d", huge=(HUGE, 2)
    ),
    "only": choice("*").also(numbers=[3], None_in_it=[None]).but("no pattern", "a list"),
    "skip": choice(LEFT_OUT).also(numbers=[3], None_in_it=[None]).but("no pattern", "a list"),
    "per": choice("network", "stage"),
    "seed": seed(0),
    **TIMED,
    "target": number(above=0),  # There is a design already.
    "target_params": count(),
}


ZOO = {
    "weights": source(),
    "input_shape": whole_numbers((28, 28, 1)).also(too_small=(2, 2, 1), two_numbers=(28, 28)),
    "classes": count(3),
    "classifier_activation": choice("softmax")
    .but("Keras takes any function, and logits have none", "a function", "None", "drawn")
    .also(a_text="unknown activation"),
    "seed": seed(0),
    "name": text("a_network"),
    "dtype": choice("float32").but("Keras has more of them", "drawn"),
}


BUILT = {
    **ZOO,
    "include_top": flag(True),
    "input_tensor": thing(),
    "pooling": choice(LEFT_OUT, "avg", "max"),
    "features_only": flag(False),
    "data_format": choice("channels_last"),
}


LINEAR = {
    "cardinality": count(2),
    "shared_input": flag(False),
    "parameterization": choice("ntk", "standard"),
    "gain": number(2.0, above=0),
    "kernel_initializer": choice("zeros").but("Keras takes any function", "a function", "drawn"),
}


OF_KERAS = "Keras takes any function"


def keras_object(valid, *more):
    """An object that Keras finds by its name: an initialiser, a regulariser, a constraint.

    It knows some under several names, has defaults for `None`, and takes arrays, which it looks at
    when the weights are made.
    """
    return choice(valid).but(OF_KERAS, "a function", "drawn", *more)


CORRELATION = number(0.9, most=1).but("1 by default", "None")
