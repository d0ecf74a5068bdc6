"""A search by a chief and workers in processes of their own."""

import json
import os
import socket
from pathlib import Path

import fresh
import pytest
from searches import FC, optimum

from ce_keras import search
from ce_keras.tuner import (
    designs_of,
)

WORKER = """
import os, sys
sys.path.insert(0, sys.argv[2])
import searches
kill = sys.argv[3] == "kill"
def build(hp):
    if kill and hp.values.get("width", 1) > 1:
        os._exit(9)
    return searches.build(hp)
found = searches.CollegialTuner(
    build, "val_loss", searches.FC, max_trials=4, directory=sys.argv[1], project_name="p"
)
searches.look(found)
"""


def _process(folder, who, port, what="live"):
    environment = {
        **os.environ,
        "KERASTUNER_TUNER_ID": who,
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(port),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return fresh.Process(["-c", WORKER, folder, Path(__file__).parent, what], environment)


@pytest.mark.slow
def test_a_chief_and_two_workers_of_which_one_dies(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chief = _process(tmp_path, "chief", port)
    try:
        dying = _process(tmp_path, "tuner0", port, "kill")
        _, errors = dying.communicate(timeout=120)
        assert dying.returncode == 9, errors
        # The one that died comes back under its name, and its trial with it.
        workers = [_process(tmp_path, f"tuner{index}", port) for index in (0, 1)]
        for worker in workers:
            _, errors = worker.communicate(timeout=180)
            assert worker.returncode == 0, errors
        _, errors = chief.communicate(timeout=60)
        assert chief.returncode == 0, errors
    finally:
        chief.kill()
        chief.communicate()
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("p/trial_*/trial.json")]
    assert {trial["status"] for trial in trials} == {"COMPLETED"}
    found = []
    for trial in sorted(trials, key=lambda trial: trial["trial_id"]):
        values = trial["hyperparameters"]["values"]
        found.append((values["cardinality"], values["width"]))
    walk = dict.fromkeys([optimum(), *designs_of(search(FC, hard_budget=True))])
    assert found == list(walk)[:4]
