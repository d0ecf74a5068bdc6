"""Kernels on the other backends of Keras: all families of models of a backend in one process."""

import json
from pathlib import Path

import kernels_elsewhere
import numpy as np
import pytest
from backend_step import run_on

# Without a name, all of them. JAX compiles each for seconds: one for every rule.
FAMILIES = {
    "torch": (),
    "jax": (
        *("einsum_grouped", "conv1d_causal", "conv2d_grouped", "separable2d", "transposed2d_short"),
        *("batch_norm", "group_norm", "attention", "collegial_conv_shared", "normed_ensemble"),
        "shared_convolution",
    ),
}
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
