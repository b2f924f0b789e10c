"""Buckets and nodes: a store that speaks S3, two nodes that share nothing else, and what fails meanwhile."""

import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from jobs import PATIENCE, TABLES, cone, embeddings_of, wait_for

from imgsim.extras.cli import main
from imgsim.extras.scale.build import build_index
from imgsim.extras.scale.cluster import cluster, shielded
from imgsim.extras.scale.embed import embed_images, store_embeddings
from imgsim.extras.scale.index import ShardedIndex
from imgsim.extras.scale.shards import Shards
from imgsim.extras.scale.sources import list_images, read_images
from imgsim.index import BuildLSHTable

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


class Nodes:
    """A cluster of two nodes, each with a temporary folder and an object store of its own."""

    def __init__(self, folder):
        from ray.cluster_utils import Cluster

        self.folder, self.started = Path(folder), 1
        (self.folder / "ray").mkdir()
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE | {"temp_dir": f"{folder}/1"})
        self.second = None
        self.complete()

    def complete(self):
        """Start a second node, if it is gone."""
        if self.second is None:
            self.started += 1
            self.second = self.cluster.add_node(**NODE, temp_dir=f"{self.folder}/{self.started}")

    def lose(self):
        """Kill all processes of the second node at once."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def two_nodes(store):
    import psutil
    import ray

    with TemporaryDirectory(prefix="imgsim-") as folder, pytest.MonkeyPatch.context() as patch, shielded():
        patch.setenv("RAY_TMPDIR", folder)
        nodes = Nodes(folder)
        patch.setenv("RAY_ADDRESS", nodes.cluster.address)
        started = psutil.Process().children(recursive=True)
        with cluster():
            yield nodes
        nodes.cluster.shutdown()
        assert started and not psutil.wait_procs(started, timeout=PATIENCE)[1] and not ray.is_initialized()


@pytest.fixture
def nodes(two_nodes):
    two_nodes.complete()
    return two_nodes


@pytest.fixture
def bucket(store, request):
    """The address of a new bucket."""
    name = "b" + "".join(letter for letter in request.node.name.lower() if letter.isalnum())[-40:]
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    store.fails = None


@pytest.fixture
def photos(bucket, image_folder):
    """The address of 48 photos."""
    fs = fsspec.filesystem("s3")
    for number in range(2):
        for path in (image_folder / "train").rglob("*.png"):
            fs.pipe_file(f"{bucket}/photos/{number}-{path.name}", path.read_bytes())
    return f"{bucket}/photos"


def one_in(number):
    """Let one of so many requests fail."""
    seen = iter(range(1, 1 << 30))
    return lambda *_: "5xx" if next(seen) % number == 0 else None


def lose_a_node(nodes, job, *arguments, **settings):
    """Start a job, and lose a node as soon as its first shard is there."""
    store = fsspec.filesystem("s3", use_listings_cache=False)
    folder = arguments[0] if job is build_index else arguments[1]
    written = f"{folder}/index/sketches" if job is build_index else f"{folder}/embeddings"
    thread = threading.Thread(target=job, args=arguments, kwargs=settings)
    thread.start()
    wait_for(lambda: store.find(written))
    nodes.lose()
    assert thread.is_alive()
    thread.join(PATIENCE)


@pytest.mark.long
def test_all_steps_in_buckets_on_two_nodes_although_requests_fail(
    nodes, store, bucket, photos, checkpoint, encoder, image_folder, assert_same, capsys, tmp_path
):
    from ray._private.state import actors

    store.reset()
    store.fails = one_in(20)
    work = f"{bucket}/work"
    manifest = embed_images(photos, work, str(checkpoint), concurrency=2, shard_rows=6)
    build_index(work, **TABLES)
    photo = image_folder / "train" / "red" / "red.3.png"
    assert main(["scale", "query", work, str(photo), "--top-k", "2"]) == 0
    said = capsys.readouterr().out
    assert "0-red.3.png" in said and "1-red.3.png" in said
    assert main(["scale", "export", work, f"{bucket}/index"]) == 0
    assert store.failed["5xx"] > 5
    at_work = [actor for actor in actors().values() if "MapWorker" in actor["ActorClassName"]]
    assert len({actor["Address"]["NodeID"] for actor in at_work}) == 2
    store.fails = None
    ids, points, sources = embeddings_of(work)
    assert ids.tolist() == list(range(48)) and manifest["count"] == 48 and not manifest["skipped"]
    images = [image_folder / "train" / source[2:].partition(".")[0] / source[2:] for source in sources]
    expected = encoder.embed(images)
    np.testing.assert_allclose(points, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-3)
    assert_same(work, BuildLSHTable(**TABLES).build_from_embeddings(points), expected[:5])
    fsspec.filesystem("s3").get(f"{bucket}/index/", f"{tmp_path}/", recursive=True)
    assert_same(work, BuildLSHTable.load(tmp_path, mapped=True), expected[:5])


@pytest.mark.long
def test_a_node_lost_while_images_are_embedded_costs_nothing(nodes, bucket, photos, checkpoint):
    job = threading.Thread(
        target=embed_images,
        args=(photos, f"{bucket}/work", str(checkpoint)),
        kwargs={"concurrency": 4, "shard_rows": 3},
    )
    job.start()
    wait_for(lambda: fsspec.filesystem("s3", use_listings_cache=False).find(f"{bucket}/work"))
    nodes.lose()
    job.join(PATIENCE)
    ids, points, _ = embeddings_of(f"{bucket}/work")
    assert ids.tolist() == list(range(48)) and np.isfinite(points).all()


@pytest.mark.long
def test_a_node_lost_while_tables_are_built_costs_nothing(nodes, bucket, assert_same):
    work, points = f"{bucket}/work", cone(1500)
    store_embeddings(work, points, shard_rows=60)
    lose_a_node(nodes, build_index, work, **TABLES)
    assert_same(work, BuildLSHTable(**TABLES).build_from_embeddings(points), points[:3])


@pytest.fixture(scope="module")
def built(two_nodes, store):
    """The address of tables of 700 embeddings."""
    fsspec.filesystem("s3").mkdir("built")
    store_embeddings("s3://built/work", cone(700), shard_rows=100)
    build_index("s3://built/work", **TABLES)
    return "s3://built/work"


@pytest.mark.long
def test_a_cold_search_takes_one_round_of_reads_per_stage(built, store):
    """Manifests, projection; of tables, sketches and embeddings the footers and the rows; sources of the matches."""
    store.reset()
    with mock.patch.object(Shards, "fetch", autospec=True, side_effect=Shards.fetch) as fetch:
        index = ShardedIndex(built, probes=0, rerank=10)
        index.search(cone(1)[0])
    assert fetch.call_count == 2 + 1 + 2 * 3 + 1
    assert set(store.requests) == {"GET"} and store.requests["GET"] <= 3 + 2 * (10 + 7 + 7) + 30
    before = store.requests["GET"]
    index.search(cone(1)[0])
    assert store.requests["GET"] - before < before * 2 / 3  # neither manifests nor footers


@pytest.mark.long
@pytest.mark.parametrize("how", ["5xx", "full"])
def test_a_version_appears_when_it_is_whole_and_a_store_that_fails_ends_the_job(how, nodes, bucket, store, assert_same):
    work, points, written = f"{bucket}/work", cone(300), []
    store_embeddings(work, points, shard_rows=100)

    def fail(method, path):
        if method == "PUT":
            written.append(path)
        return how if method == "PUT" and "table=003" in path else None

    store.fails = fail
    with pytest.raises(OSError, match="cannot be reached") as caught:
        build_index(work, **TABLES)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no finished shards"):
        ShardedIndex(work)
    assert not any("manifest" in path for path in written)
    kept = [path for path in fsspec.filesystem("s3").find(work) if path.endswith(".parquet")]
    store.fails, before = lambda *what: written.append(what[1]) if what[0] == "PUT" else None, len(written)
    build_index(work, **TABLES)
    assert written[-1].endswith("index/manifest.json")
    assert len(kept) > 3 and not {path.lstrip("/") for path in written[before:]} & set(kept)
    assert_same(work, BuildLSHTable(**TABLES).build_from_embeddings(points), points[:3])


def test_what_another_process_has_written_is_seen(bucket):
    """File systems remember listings."""
    shards = Shards.at(bucket, "shards")
    others = Shards(fsspec.filesystem("s3", **shards.fs.storage_options, skip_instance_cache=True), shards.path)
    for number in range(2):
        table = pa.table({"id": [number]})
        assert others.read(shards.write_table(f"part-{number}", "12345678", table, 1)).equals(table)
        assert len(others.finished("12345678")) == number + 1


def test_photos_that_vanish_are_left_out_and_a_store_that_fails_is_no_fault_of_theirs(photos, store):
    images = list_images(photos)
    (piece,) = images.pieces(0, 48)
    store.fails = lambda method, path: "gone" if "1-red.2" in path else None
    errors = [name for name, content in read_images(images.folder, None, piece) if isinstance(content, Exception)]
    assert errors == ["1-red.2.png"]
    store.fails = lambda method, path: "5xx" if "1-red.2" in path else None
    with pytest.raises(OSError, match="cannot be reached"):
        read_images(images.folder, None, piece)
    store.fails = lambda *_: "5xx"
    with pytest.raises(ValueError, match="photos"):
        list_images(photos)


@pytest.mark.long
def test_a_slow_store_is_asked_again_within_bounds(built, store, monkeypatch, refused):
    """How long and how often is for botocore to say, whose settings fsspec hands over."""
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1, "retries": {"max_attempts": 0}}}
    )
    slow = iter(["slow", None, "slow"])
    store.fails = lambda *_: next(slow, None)
    assert len(ShardedIndex(built)) == 700
    store.fails = lambda *_: "slow"
    with pytest.raises(OSError, match="cannot be reached"):
        ShardedIndex(built)
    store.fails = lambda method, path: "gone" if "sketches" in path else None
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"sketches.* is missing"):
        ShardedIndex(built).search(cone(1)[0])
    store.fails = None
