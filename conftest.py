"""Read by pytest also when it is given notebooks alone: a cache for the session, and how outputs are compared."""

import os
import shutil
import tempfile

pytest_plugins = ["tolerance"]


def pytest_configure(config):
    """Give the session a cache of its own: what was embedded or rendered before is never seen by a test.

    Workers and kernels inherit it from the first process, so images are rendered and embedded once for all of them.
    """
    if not hasattr(config, "workerinput"):
        cache = os.environ["IMGSIM_CACHE"] = tempfile.mkdtemp(prefix="imgsim-cache-")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
