"""The steps of `imgsim scale`: each does its work and returns what to print at the end."""

from __future__ import annotations

from imgsim.extras.scale.build import build_index
from imgsim.extras.scale.embed import embed_images
from imgsim.extras.scale.index import ShardedIndex
from imgsim.extras.scale.shards import Shards
from imgsim.index import NO_ENCODER, encoder_that_made


def embed(images: str, folder: str, **settings) -> str:
    """Embed images, see `embed_images`."""
    manifest = embed_images(images, folder, **settings)
    path, skipped = Shards.at(folder, "embeddings").path, manifest["skipped"]
    text = f"{manifest['count']:,} embeddings in {len(manifest['files'])} shards: {path}"
    if skipped:
        text += f"\n{len(skipped):,} images were left out, such as {skipped[0]['source']}: {skipped[0]['reason']}"
    return text


def build(folder: str, **settings) -> str:
    """Build tables of embeddings, see `build_index`."""
    manifest = build_index(folder, **settings)
    tables = f"{manifest['num_tables']} tables of {manifest['hash_size']} bits"
    size = sum(file["bytes"] for file in manifest["files"]) / manifest["count"]
    return f"{tables} for {manifest['count']:,} images, {size:.0f} bytes per image: {Shards.at(folder, 'index').path}"


def query(folder: str, photo: str, top_k: int, probes: int) -> str:
    """Search the tables with a photo, embedded by the checkpoint that they were made with."""
    index = ShardedIndex(folder, probes=probes)
    made_with = NO_ENCODER | index.manifest["encoder"]
    if not made_with["name"]:
        raise ValueError(f"The embeddings in {folder!r} came from elsewhere: no checkpoint is known for {photo}.")
    encoder = encoder_that_made(f"The index in {folder!r}", made_with)
    result = index.search(encoder.embed([photo]), top_k)
    matches = zip(result.cosines[0], result.ids[0][result.ids[0] >= 0], result.keys[0], strict=False)
    head = f"{result.candidates_seen[0]:,} of {len(index):,} candidates seen; cosine, id, image:"
    return "\n".join([head, *(f"{cosine:.3f}  {id:>8}  {source}" for cosine, id, source in matches)])


def export(folder: str, target: str) -> str:
    """Write the index as arrays that can be mapped into memory, see `ShardedIndex.export`."""
    exported = ShardedIndex(folder).export(target)
    copied = "" if Shards.at(exported).local else ", copied to this machine,"
    return f"BuildLSHTable.load({exported!r}, mapped=True){copied} opens it"
