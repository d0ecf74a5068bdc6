"""A dataset, and a finished run, shared by all tests of training."""

import pytest
from recipes_for_tests import small


@pytest.fixture(scope="session")
def embedded():
    from ce_keras.training import load_fashion_mnist

    return load_fashion_mnist()


@pytest.fixture(scope="session")
def source():
    from ce_keras.training.datasets import load_dataset

    return load_dataset(small().data)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, source):
    """An uninterrupted run."""
    from ce_keras.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("finished")
    return folder, Trainer(small(), source, folder, seed=3).run()
