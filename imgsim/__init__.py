"""Image similarity in small pieces: embeddings, hashes, tables, ranked images.

`import imgsim` is light; torch is imported when an encoder is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see; test_project.py holds it to be the same names
    from imgsim.encoder import Encoder as Encoder
    from imgsim.encoder import load_encoder as load_encoder
    from imgsim.figures import plot_images as plot_images
    from imgsim.figures import visualize_lsh as visualize_lsh
    from imgsim.hashing import Projection as Projection
    from imgsim.hashing import bool2int as bool2int
    from imgsim.hashing import collision_probability as collision_probability
    from imgsim.hashing import draw_planes as draw_planes
    from imgsim.hashing import hash_func as hash_func
    from imgsim.images import candidates_and_queries as candidates_and_queries
    from imgsim.images import load_images as load_images
    from imgsim.index import BuildLSHTable as BuildLSHTable
    from imgsim.index import compute_hash as compute_hash
    from imgsim.search.candidates import Matches as Matches
    from imgsim.search.candidates import SearchResult as SearchResult
    from imgsim.sources.decode import open_image as open_image
    from imgsim.tables import LSH as LSH
    from imgsim.tables import Table as Table

    __version__: str

_MODULES = {
    "encoder": ("Encoder", "load_encoder"),
    "figures": ("plot_images", "visualize_lsh"),
    "hashing": ("Projection", "bool2int", "collision_probability", "draw_planes", "hash_func"),
    "images": ("candidates_and_queries", "load_images"),
    "index": ("BuildLSHTable", "compute_hash"),
    "search.candidates": ("Matches", "SearchResult"),
    "sources.decode": ("open_image",),
    "tables": ("LSH", "Table"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("imgsim-lsh")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'imgsim' has no attribute {name!r}")
    return getattr(import_module(f"imgsim.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
