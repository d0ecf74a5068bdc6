"""The command itself, in processes of its own: machines, devices, signals, pipes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import fresh
import numpy as np
import pytest

WORDS = ["-m", "ce_keras.cli"]
COMMAND = [sys.executable, *WORDS]

# Two logical CPU devices must be there before TensorFlow initialises its devices.
ON_TWO_CPUS = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], 2 * [tf.config.LogicalDeviceConfiguration()]
)
from ce_keras.cli import main
sys.exit(main(sys.argv[1:]))
"""

SMALL = {
    "data.limit": "70",
    "data.test_limit": "100",
    "model.name": "fully_connected",
    "model.depth": "2",
    "model.cardinality": "2",
    "model.width": "3",
    "schedule.batch_size": "33",
    "schedule.epochs": "1",
    "schedule.divide_at": "[]",
    "schedule.warmup": "0",
    "optimizer.learning_rate": "0.01",
}


def train(folder, *more, begin=fresh.Process, words=WORDS, environment=None, **changes):
    """Begin to train: in a fork, or where a real interpreter begins too, if that is asked for."""
    sets = [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]
    arguments = [part for each in sets for part in ("--set", each)]
    # Without what the tests set: as a user's shell would have it.
    outside = {
        k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL", "TF_CONFIG")
    }
    words = [*words, "train", "fashion_mnist", "--out", str(folder), *arguments, *more]
    return begin(words, env={**outside, **(environment or {})})


def interpreter(words, env):
    command, pipe = [sys.executable, *words], subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def ended(process, code=0):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    # No line that TensorFlow or Abseil writes when it starts.
    assert not [line for line in errors.splitlines() if "0000 00:00:" in line or "absl::" in line]
    return output, errors


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Results and standard error of one process on one device."""
    folder = tmp_path_factory.mktemp("one")
    _, errors = ended(train(folder / "run", begin=interpreter))
    return json.loads((folder / "run/results.json").read_text()), errors


def assert_same_run(found, one):
    expected, _ = one
    assert found["design"] == expected["design"]
    for name in ("loss", "error", "top5_error"):
        values = [[row[name] for row in each["history"]] for each in (found, expected)]
        # Sums over the batch are in another order; an image in a hundred may fall otherwise.
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1.01 if "error" in name else 0)


def free_address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


@pytest.mark.slow
def test_two_machines_train_as_one(one, tmp_path):
    cluster = {"cluster": {"worker": [free_address(), free_address()]}}
    processes = []
    for index in range(2):
        task = {"task": {"type": "worker", "index": index}}
        environment = {"TF_CONFIG": json.dumps(cluster | task)}
        processes.append(train(tmp_path / f"worker-{index}", "--json", environment=environment))
    (first, errors), (second, _) = (ended(process) for process in processes)
    assert json.loads(first)["history"] == json.loads(second)["history"]
    assert_same_run(json.loads(first), one)
    assert "waiting for the workers that TF_CONFIG names" in errors
    assert (tmp_path / "worker-0/model.keras").exists()
    assert not (tmp_path / "worker-1").exists(), "only the chief writes"


@pytest.mark.slow
def test_two_devices_of_one_machine_train_as_one(one, tmp_path):
    devices = ["--devices", "cpu:0", "cpu:1"]
    process = train(tmp_path / "run", "--json", *devices, words=["-c", ON_TWO_CPUS])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert json.loads(output) == results
    assert_same_run(results, one)


# Each interpreter imports a backend of Keras for itself.
@pytest.mark.slow
def test_the_backend_of_the_environment_trains_or_is_refused(tmp_path):
    def train_on(name):
        return train(tmp_path / name, begin=interpreter, environment={"KERAS_BACKEND": name})

    output, _ = ended(train_on("jax"))
    assert "test error" in output
    for name in ("torch", "other"):
        _, errors = ended(train_on(name), code=2)
        (line,) = errors.splitlines()
        assert line.startswith("ce-keras train: ")
        assert name in line


@pytest.mark.parametrize(
    ("which", "code", "message"),
    [
        (signal.SIGINT, 130, "ce-keras train: interrupted; all is saved in "),
        (signal.SIGTERM, 75, "ce-keras train: asked to end; all is saved in "),
    ],
)
def test_a_signal_saves_the_run_and_says_so_on_one_line(which, code, message, tmp_path):
    process = train(tmp_path / "run", "--save-every", "1", **{"schedule.epochs": "500"})
    checkpoints = tmp_path / "run/checkpoints"
    while not list(checkpoints.glob("step-*.npz")) and process.poll() is None:
        time.sleep(0.1)
    before = max(path.name for path in checkpoints.glob("step-*.npz"))
    process.send_signal(which)
    _, errors = ended(process, code)
    lines = [line for line in errors.splitlines() if line.startswith("ce-keras")]
    assert len(lines) == 1
    assert lines[0].startswith(message)
    assert "the same command goes on from there" in lines[0]
    assert max(path.name for path in checkpoints.glob("step-*.npz")) >= before


def test_ctrl_c_elsewhere_is_one_line_too(tmp_path):
    checkpoint = tmp_path / "alpha.json"
    words = ["fit-alpha", "bottleneck", "--method", "sampler", "--draws", "200000"]
    process = fresh.Process([*WORDS, *words, "--checkpoint", str(checkpoint)])
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = ended(process, 130)
    assert errors.splitlines()[-1] == "ce-keras fit-alpha: interrupted"


def test_a_reader_that_leaves_is_not_an_error():
    line = " ".join([*map(str, COMMAND), "list"])
    shell = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shell.stderr == ""
    assert shell.returncode in (0, 141)
    assert len(shell.stdout.splitlines()) == 1


def test_a_closed_output_is_one_line():
    line = " ".join([*map(str, COMMAND), "search resnext29 >&-"])
    shell = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, check=False)
    assert shell.returncode == 2
    assert shell.stderr.startswith("ce-keras search: standard output is closed")
    assert len(shell.stderr.splitlines()) == 1


def test_there_are_no_bars_where_nobody_watches(one):
    _, errors = one
    assert "\r" not in errors
    assert "%" not in errors
