"""Read by pytest also when it is given notebooks alone: a cache for the session, and how outputs are compared."""

import gc
import os
import shutil
import tempfile

pytest_plugins = ["tolerance"]


def pytest_configure(config):
    """Give the session a cache of its own: what was embedded or rendered before is never seen by a test.

    Workers and kernels inherit it from the first process, so images are rendered and embedded once for all of them.
    """
    gc.disable()  # until all that the tests import is there: looking through it takes a quarter of that time
    if not hasattr(config, "workerinput"):
        cache = os.environ["IMGSIM_CACHE"] = tempfile.mkdtemp(prefix="imgsim-cache-")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


LONGEST = (  # files first that take long, so that no worker is left alone with one of them in the end
    *("test_scale", "01_embeddings", "test_wheel", "test_runs", "test_sweep", "09_scale_out", "06_sweep_report"),
    *("07_near_duplicates", "test_notebooks", "test_modalities", "test_demo", "test_onnx"),
)


def pytest_collection_modifyitems(items):
    """Sort tests by how long their files take; xdist hands the files out in this order (--no-loadscope-reorder)."""
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))
