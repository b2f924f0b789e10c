"""Ray, started for a while on this machine or joined where it runs; its jobs with a progress bar and plain errors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex
from tempfile import TemporaryDirectory

from tqdm import tqdm

from imgsim.extras.runs.environment import environ
from imgsim.sources.errors import first_line, require

STORE = 1 << 30  # bytes of shared memory that a local Ray keeps blocks in; what is more goes to disk
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
TOKEN = token_hex(32)  # one for the whole process: Ray reads it once
BLOCK = 32 << 20  # bytes in a block, which is handed from step to step


def require_ray() -> None:
    """Check that Ray Data is installed."""
    require(("ray", "pyarrow"), "scale")


@contextmanager
def cluster(cpus: int | None = None, num_gpus: int | None = None) -> Iterator:
    """Gives ray.data of a Ray to work on: one joined before, the one that RAY_ADDRESS names, or a local one meanwhile.

    A local one obeys nobody who does not know its token, has no dashboard, and reports to nobody. cpus: how many tasks
    it works on at a time, by default as many as there are cores.
    """
    require_ray()
    settings = {name: os.environ.get(name, value) for name, value in QUIET.items()}
    with environ(**settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        import ray.data
        from ray._raylet import AuthenticationTokenLoader, Config

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK
        context.execution_options.preserve_order = True
        if ray.is_initialized():
            yield ray.data
            return
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            try:
                yield ray.data
            finally:
                ray.shutdown()
            return
        # Ray listens on all of a machine's addresses, and executes what it is sent.
        secret = environ(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
        with secret, TemporaryDirectory(prefix="imgsim-", ignore_cleanup_errors=True) as folder:
            Config.initialize("")  # reads the environment again, should Ray have been imported before
            AuthenticationTokenLoader.instance().reset_cache()
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=num_gpus,
                object_store_memory=STORE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
            try:
                yield ray.data
            finally:
                ray.shutdown()


def work(job, total: int, what: str, unit: str) -> Iterator[dict]:
    """The rows that a Ray data set comes to, as they are finished; each says in `count` how far the bar moves.

    Raises what a task raised, as if it had been raised here.
    """
    with tqdm(total=total, desc=what, unit=unit, delay=1) as bar:
        rows = iter(job.iter_rows())
        while True:
            try:
                row = next(rows, None)
            except Exception as error:
                raise plain(error) from error
            if row is None:
                return
            bar.update(row["count"])
            yield row


def plain(error: Exception) -> Exception:
    """What went wrong in a task, without Ray's account of where."""
    cause = error
    while inner := getattr(cause, "cause", None) or cause.__cause__:
        cause = inner
    return cause if isinstance(cause, (ValueError, OSError)) else RuntimeError(f"A task failed: {first_line(cause)}")
