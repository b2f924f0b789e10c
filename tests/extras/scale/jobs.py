"""What the tests of jobs share: embeddings, what lies in folders, and patience."""

import time
from contextlib import suppress

import numpy as np
import pyarrow as pa

from imgsim.extras.scale.shards import Shards

TABLES = {"hash_size": 8, "num_tables": 10}
PATIENCE = 500  # seconds after which something that takes less than a minute hangs, on slow machines too


def cone(n, dim=24, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dim)) + rng.standard_normal(dim)).astype(np.float16)


def files_of(folder):
    """The finished files below a folder, and when they were written; what is being written is hidden."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*.parquet")}


def name_of(process):
    with suppress(Exception):
        return " ".join(process.cmdline())
    return ""


def wait_for(condition, seconds=PATIENCE):
    """What a condition gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return value


def embeddings_of(folder):
    """Ids, embeddings and sources that a folder's manifest stands for."""
    shards = Shards.at(folder, "embeddings")
    table = pa.concat_tables([shards.read(file["name"]) for file in shards.manifest()["files"]])
    return table["id"].to_numpy(), np.stack(table["embedding"].to_numpy()), table["source"].to_pylist()
