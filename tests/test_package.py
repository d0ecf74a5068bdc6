"""What a user's process loads, and when."""

import subprocess
import sys

import pytest

import ce_keras

HEAVY = ("tensorflow", "keras", "matplotlib", "jax", "torch", "tqdm")


def loaded_after(code):
    report = f"\nimport sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", code + report]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return output.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import ce_keras; ce_keras.search('resnext29', mode='dual')",
        "from ce_keras import designs; designs.choose_design('resnext50')",
        "from ce_keras.cli import main; main(['search', 'resnext29', '--json'])",
        "from ce_keras.cli import main; main(['list'])",
    ],
)
def test_the_search_loads_numpy_and_nothing_heavy(code):
    assert loaded_after(code) == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import keras; import ce_keras",
        # Each process imports TensorFlow for itself.
        *(
            pytest.param(first, marks=pytest.mark.slow)
            for first in (
                "import ce_keras; import keras",
                "import ce_keras; import tensorflow; import keras",
                "import ce_keras; from keras import layers; import keras",
            )
        ),
    ],
)
def test_layers_are_registered_whichever_is_imported_first(first):
    code = f"{first}; print(keras.saving.get_registered_object('ce_keras>CollegialConv2D'))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "CollegialConv2D" in output


def test_public_names_are_there_and_documented():
    for name in ce_keras.__all__:
        assert getattr(ce_keras, name).__doc__
        assert name in dir(ce_keras)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ce_keras.nothing


def test_version_is_the_distributions():
    from importlib.metadata import version

    assert version("ce-keras") == ce_keras.__version__
