"""Settings that all tests need before TensorFlow is loaded, and fixtures that they share."""

import gc
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")
# For JAX and stock grouped convolutions, compiling takes longer here than running slow code.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Every worker has a core; threads of NumPy that wait for another's take ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

pytest.register_assert_rewrite("bad_input", "fresh")


def pytest_addoption(parser):
    parser.addoption(
        "--every-network",
        action="store_true",
        help="ask of every network of the zoo what is otherwise asked of thin ones: hours",
    )


@pytest.fixture(scope="module", autouse=True)
def _seeded_module():
    """Let models that the tests of a file share be the same in every run."""
    _seed()


@pytest.fixture(autouse=True)
def _seeded():
    """Let a test that fails fail again, also when it is run alone."""
    _seed()


def _seed():
    if "keras" in sys.modules:  # Not every test needs it.
        sys.modules["keras"].utils.set_random_seed(20200929)


@pytest.fixture(scope="module", autouse=True)
def _short_garbage_collection():
    """Let garbage collection pass over what earlier files and imports left: it takes up to 0.5 s.

    Keras, KerasTuner and `BudgetOracle` ask for it at each model that they build.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep measured times out of the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CE_KERAS_CACHE", str(tmp_path_factory.mktemp("times")))
        yield


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(20200929)


@pytest.fixture
def colour_images(tmp_path, rng):
    """A folder of random images of 32x32 pixels: ten classes, 13 of each to train and to test."""
    import numpy as np
    from PIL import Image

    for part in ("train", "test"):
        for number in range(10):
            folder = tmp_path / "images" / part / f"class-{number}"
            folder.mkdir(parents=True)
            for image in range(13):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return tmp_path / "images"
