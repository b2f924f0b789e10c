"""Compiled functions, kept on disk where there is a place for them."""

from collections.abc import Callable

from numba import config, njit

if config.DISABLE_JIT:
    raise ValueError("The search is made of compiled functions, which NUMBA_DISABLE_JIT forbids: unset it.")


def kept(**options) -> Callable:
    """Decorate a function to be compiled when it is first called; the next processes read what was compiled."""

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside the source nor in a home can be written: each process compiles
            return njit(**options)(function)

    return decorate
