"""Image similarity in small pieces: embeddings, hashes, tables, ranked images.

`import imgsim` is light; torch is imported when an encoder is first asked for.
"""

from importlib import import_module

_HOMES = {
    "load_images": "images",
    "open_image": "sources.decode",
    "candidates_and_queries": "images",
    "load_encoder": "encoder",
    "Encoder": "encoder",
    "draw_planes": "hashing",
    "hash_func": "hashing",
    "bool2int": "hashing",
    "collision_probability": "hashing",
    "Projection": "hashing",
    "Table": "tables",
    "LSH": "tables",
    "compute_hash": "hashing",
    "BuildLSHTable": "index",
    "Matches": "index",
    "SearchResult": "index",
    "visualize_lsh": "figures",
    "plot_images": "figures",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'imgsim' has no attribute {name!r}")
    return getattr(import_module(f"imgsim.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
