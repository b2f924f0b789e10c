"""Work that is killed at any moment: nothing is lost, nothing of others is touched, and the next start is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("papermill", reason="the extra notebooks is not installed")

# Kills per command; IMGSIM_KILLS=50 tries more moments.
QUICK = {"save": 12, "first-save": 12, "embed": 6, "draw": 9, "find": 6, "duplicates": 6, "run": 3, "sweep": 3}


@pytest.mark.long
@pytest.mark.extra
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
@pytest.mark.parametrize("command", QUICK)
def test_a_kill_loses_nothing_and_the_next_start_is_right(command, tmp_path, checkpoint):
    count = os.environ.get("IMGSIM_KILLS", str(QUICK[command]))
    arguments = [command, count, "0", str(tmp_path / "place"), str(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    victims = [sys.executable, str(Path(__file__).with_name("victims.py")), *arguments]
    answer = subprocess.run(victims, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-3000:]
    counts = json.loads(answer.stdout.splitlines()[-1])
    print(command, counts)
    assert sum(counts.values()) == int(count) and counts["done before"] < int(count)
