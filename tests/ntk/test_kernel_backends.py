"""Kernels on the other backends of Keras: all families of models of a backend in one process."""

import json
from pathlib import Path

import kernels_elsewhere
import numpy as np
import pytest
from backend_step import run_on
from kernel_models import ONE_FOR_EVERY_RULE

# Without a name, all of them. JAX compiles each for seconds.
FAMILIES = {"torch": (), "jax": ONE_FOR_EVERY_RULE}
every_backend = pytest.mark.parametrize("backend", FAMILIES)


@pytest.mark.slow
@every_backend
def test_kernels_are_those_of_the_backends_own_jacobian(backend, tmp_path):
    np.save(tmp_path / "draws.npy", kernels_elsewhere.draws())
    run_on(backend, kernels_elsewhere.__file__, tmp_path, *FAMILIES[backend])


@pytest.mark.slow
@every_backend
def test_the_script_for_gpus_runs_without_one(backend, tmp_path):
    script = Path(__file__).parents[2] / "benchmarks/ntk_gpu.py"
    run_on(backend, script, "--tiny", "--sizes", 2, "--rounds", 1, "--out", tmp_path)
    lines = (tmp_path / f"ntk_{backend}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["by"] for row in rows] == 5 * ["ce_keras"] + 5 * ["jacrev"]
    assert all(row["relative gap"] < 1e-4 for row in rows[5:])
