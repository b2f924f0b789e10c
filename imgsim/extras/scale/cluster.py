"""Ray, started for a while on this machine or joined on a cluster; its jobs with a progress bar and plain errors."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from secrets import token_hex
from tempfile import TemporaryDirectory

from tqdm import tqdm

from imgsim.extras.runs.environment import environ
from imgsim.sources.errors import require

STORE_BYTES = 1 << 30  # shared memory in which a local Ray keeps blocks; more than that goes to disk
BLOCK_BYTES = 32 << 20  # of a block, which is handed from step to step
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # where Ray runs on one machine only, it listens on 127.0.0.1
RAY_ADDS = re.compile(r"\n|: ['\"]Failed to ")  # begins what Ray puts at the end of an error
TOKEN = token_hex(32)  # one for the whole process: Ray reads it once


def require_ray() -> None:
    """Check that Ray Data is installed."""
    require(("ray", "pyarrow"), "scale")


@contextmanager
def shielded() -> Iterator[None]:
    """Let the Ray that is started meanwhile listen on loopback only, to those that present the token.

    Ray executes what it is sent, and shows its metrics to anybody.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    reachable = ray_constants.ENABLE_RAY_CLUSTER
    with environ(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, **LOOPBACK):
        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray may have been imported before, and reads the environment once
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = reachable


@contextmanager
def cluster(cpus: int | None = None, num_gpus: int | None = None) -> Iterator:
    """Give `ray.data` of a Ray that was joined before, that RAY_ADDRESS names, or of a local one, started for a while.

    A local one listens on this machine's loopback, to connections that present its token, has no dashboard, and
    reports to nobody. It has `cpus` cores, by default all, and `num_gpus` GPUs, by default all.
    """
    settings = {name: os.environ.get(name, value) for name, value in QUIET.items()}
    with environ(**settings), warnings.catch_warnings(action="ignore"), ExitStack() as stack:
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        context.execution_options.preserve_order = True
        context.raise_original_map_exception = True
        context.shuffle_strategy = "sort_shuffle_push_based"  # by hash, an actor would start for each partition
        if not ray.is_initialized():
            options = {"log_to_driver": False, "logging_level": logging.ERROR}
            if not os.environ.get("RAY_ADDRESS"):
                stack.enter_context(shielded())
                folder = TemporaryDirectory(prefix="imgsim-", ignore_cleanup_errors=True)
                place = f"{stack.enter_context(folder)}/ray"  # Ray lets everybody write to it, but nobody gets that far
                options |= {"address": "local", "include_dashboard": False, "_temp_dir": place}
                options |= {"num_cpus": cpus, "num_gpus": num_gpus, "object_store_memory": STORE_BYTES}
            stack.callback(ray.shutdown)
            try:
                ray.init(**options)
            except Exception as error:  # Ray gives itself half a minute, which is short where others work, too
                if "timed out" not in str(error):
                    raise
                ray.shutdown()
                ray.init(**options)
        yield ray.data


def run_job(results: Callable[[], Iterable], total: int, what: str, unit: str, count=itemgetter("count")) -> Iterator:
    """Run a job of Ray Data with a progress bar; give its results, each of which moves the bar by its count.

    Raises:
        ValueError, OSError, RuntimeError: a task raised it.
    """
    with tqdm(total=total, desc=what, unit=unit, delay=1) as bar:
        try:
            for result in results():
                bar.update(count(result))
                yield result
        except Exception as error:
            raise root_cause(error) from error


def root_cause(error: Exception) -> Exception:
    """Return what went wrong in a task, without Ray's account of where and how often."""
    cause = error
    while inner := getattr(cause, "cause", None) or cause.__cause__:
        cause = inner
    said = RAY_ADDS.split(str(cause).strip(), maxsplit=1)[0]
    if isinstance(cause, OSError):
        return OSError(said)
    return ValueError(said) if isinstance(cause, ValueError) else RuntimeError(f"A task failed: {said}")
