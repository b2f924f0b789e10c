"""From one machine to a cluster on Ray Data: the same tables, the same answers (pip install 'imgsim[scale]')."""

from importlib import import_module

_HOMES = {"embed": "embedding", "store_embeddings": "embedding", "build": "building", "ShardedIndex": "sharded"}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
