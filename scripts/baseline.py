"""Compare a run's metrics with a baseline: python scripts/baseline.py metrics.json baseline.json.

Where there is no baseline yet, these metrics become it. Exit code 1 where a measure has left its band.
"""

import json
import sys
from pathlib import Path

SAME = ("candidates", "queries", "dim")
BAND = {  # how far a measure may move before somebody should look
    "exact_label_precision_at_5": 0.01,
    "label_precision_at_5": 0.02,
    "recall_at_10": 0.03,
    "candidate_fraction": 0.03,
}


def compare(metrics: dict, baseline: dict) -> list[str]:
    """A sentence for every measure that has moved."""
    moved = [name for name in SAME if metrics[name] != baseline[name]]
    moved += [name for name, band in BAND.items() if abs(metrics[name] - baseline[name]) > band]
    return [f"{name} was {baseline[name]} and is {metrics[name]}" for name in moved]


if __name__ == "__main__":
    metrics, file = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({name: metrics[name] for name in (*SAME, *BAND)}, indent=2) + "\n")
        print(f"{file}: the first run's metrics, to compare with from now on")
    moved = compare(metrics, json.loads(file.read_text()))
    print("\n".join(moved) or "all measures within their bands")
    sys.exit(bool(moved))
