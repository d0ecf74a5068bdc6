import tomllib

import pytest

from ce_keras.training.recipe import FOLDERS, read_recipe
from ce_keras.zoo import list_models

NAMES = sorted(path.stem for path in FOLDERS[0].glob("*.toml"))


def test_the_recipes_are_there():
    assert NAMES == [
        "cifar10",
        "cifar100",
        "cifar10_short",
        "fashion_mnist",
        "imagenet",
        "imagenet32",
        "imagenet64",
        "mnist",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_good_and_flat(name):
    recipe = read_recipe(name)
    assert recipe == read_recipe(FOLDERS[0] / f"{name}.toml")
    content = tomllib.loads((FOLDERS[0] / f"{name}.toml").read_text())
    assert set(content) <= {"model", "data", "optimizer", "schedule", "expected"}
    for design in (*recipe.expected.error, *recipe.expected.top5_error):
        assert design in list_models()


def test_the_papers_settings():
    cifar, imagenet, small = (read_recipe(name) for name in ("cifar10", "imagenet", "imagenet32"))
    assert (cifar.schedule.epochs, cifar.schedule.batch_size) == (300, 128)
    assert (
        cifar.optimizer.learning_rate,
        cifar.optimizer.weight_decay,
        cifar.optimizer.momentum,
    ) == (
        0.1,
        5e-4,
        0.9,
    )
    assert imagenet.schedule.divide_at == (30, 60, 90)
    assert imagenet.optimizer.weight_decay == 1e-4
    assert (small.optimizer.learning_rate, small.schedule.divide_by) == (0.08, 5)
    assert cifar.expected.error["resnext29_37x10d"] == 3.82


def test_values_can_be_replaced():
    changes = {
        "optimizer.learning_rate": "0.05",
        "schedule.divide_at": "[1, 2]",
        "model.mode": "dual",
        "data.limit": "100",
    }
    recipe = read_recipe("cifar10", changes)
    assert recipe.optimizer.learning_rate == 0.05
    assert recipe.schedule.divide_at == (1, 2)
    assert recipe.model.mode == "dual"
    assert recipe.data.limit == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer.learning_rat": "1"},
            r"cifar10.toml: there is no key optimizer.learning_rat; .* optimizer.learning_rate",
        ),
        ({"optimizer.rate": "1"}, "optimizer.rate is now called optimizer.learning_rate"),
        ({"optimizer.decay": "1"}, "optimizer.decay is now called optimizer.weight_decay"),
        ({"optimizer.smoothing": "0"}, "smoothing is now called optimizer.label_smoothing"),
        ({"schedule.batch": "8"}, "schedule.batch is now called schedule.batch_size"),
        ({"schedule.name": "one_cycle"}, r"schedule.divide_at: .* must be \[\] with"),
        ({"modell.name": "1"}, r"there is no key modell; did you mean model\?"),
        ({"schedule.epochs": "many"}, "schedule.epochs: got 'many'; it must be a whole number"),
        ({"schedule.epochs": "true"}, "schedule.epochs: got True; it must be a whole number"),
        ({"schedule.epochs": "1.5"}, "schedule.epochs: got 1.5; it must be a whole number"),
        ({"schedule.epochs": "0"}, "schedule.epochs: got 0; it must be from 1 to 1,048,576"),
        (
            {"optimizer.learning_rate": "fast"},
            "optimizer.learning_rate: got 'fast'; it must be a number",
        ),
        (
            {"optimizer.learning_rate": "nan"},
            "optimizer.learning_rate: got nan; it must be a finite number",
        ),
        ({"schedule.divide_at": "3"}, "schedule.divide_at: got 3; it must be a list"),
        ({"schedule.divide_at": "[2, 1]"}, "increasing order"),
        ({"data.augment": '["crp"]'}, "data.augment: .* a list of crop, flip"),
        ({"model.name": "resnet"}, "model.name: got 'resnet'; it must be one of resnext11"),
        ({"model": "3"}, "model: got 3; it must be a section"),
        ({"model.name.x": "3"}, "--set model.name.x: name is a value"),
        ({"model.width": "4"}, "model.width: got 4; it must be given with model.cardinality"),
    ],
)
def test_bad_keys_and_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        read_recipe("cifar10", changes)


def test_files_that_are_not_recipes(tmp_path):
    with pytest.raises(ValueError, match="there is no file nowhere; those by name are cifar10"):
        read_recipe("nowhere")
    path = tmp_path / "broken.toml"
    path.write_text("[model")
    with pytest.raises(ValueError, match=r"broken.toml is not TOML"):
        read_recipe(path)
    path.write_text('[model]\nname = "resnext11"\n')
    with pytest.raises(ValueError, match=r"broken.toml: data is missing"):
        read_recipe(path)
