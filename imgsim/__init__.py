"""Image similarity in five steps: images, embeddings, codes, candidates, matches.

>>> candidates, queries = candidates_and_queries(load_images("builtin"))    # images
>>> encoder = load_encoder("builtin")                                      # images -> embeddings
>>> index = BuildLSHTable(encoder, hash_size=8, num_tables=10)             # embeddings -> codes -> candidates
>>> matches = index.build(candidates).query(queries[0]["image"])           # candidates -> matches
>>> visualize_lsh(index, (candidates, queries), query=0)                   # matches as pictures

The public names stand in __init__.pyi, each beside its module; a module is imported when a name of it is first used.
"""

import lazy_loader

_lazy_name, _lazy_dir, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str):
    if name != "__version__":
        return _lazy_name(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("imgsim-lsh")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return [*_lazy_dir(), "__version__"]
