"""What compiles the search, where compiling or keeping what was compiled is not possible."""

import os
import subprocess
import sys

from numba.core.caching import CacheImpl

from imgsim.search.compiled import kept


def test_what_cannot_be_kept_is_compiled_all_the_same(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])  # as where neither the package nor a home can be written to

    @kept(nogil=True)
    def add(x):
        return x + 1

    assert add(1) == 2 and add.signatures and add.stats.cache_path is None


def test_numba_told_not_to_compile_is_a_sentence():
    command = [sys.executable, "-m", "imgsim", "scale", "query", "nowhere", "photo.jpg"]
    answer = subprocess.run(command, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True)
    assert answer.returncode == 1 and answer.stderr.count("\n") == 1 and "NUMBA_DISABLE_JIT" in answer.stderr
