"""Scaling out: the same tables and answers as in one process. Ray starts once, for all."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import PATIENCE, TABLES, cone, embeddings_of, files_of
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from imgsim import candidates_and_queries, load_encoder, load_images
from imgsim.extras.modalities.encoders import load_audio_encoder, load_dual_encoder
from imgsim.extras.scale.build import build_index
from imgsim.extras.scale.embed import embed_images, store_embeddings
from imgsim.extras.scale.index import ShardedIndex
from imgsim.hashing import normalise
from imgsim.index import BuildLSHTable
from imgsim.search.candidates import arrays_of
from imgsim.search.snapshot import Snapshot

psutil = pytest.importorskip("psutil", reason="the extra notebooks is not installed")
pytestmark = pytest.mark.usefixtures("ray_here")


def test_nobody_else_gets_into_the_folder_of_ray(ray_here):
    session = Path(ray_here._private.worker._global_node.get_session_dir_path())
    assert any(stat.S_IMODE(parent.stat().st_mode) == 0o700 for parent in session.parents)


def test_ray_listens_on_loopback_only(ray_here):
    ray_here.data.range(3).count()  # workers have started
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ports = [one for process in ours for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert ports and {one.laddr.ip for one in ports} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize("change", [{}, {"probes": 0}, {"rerank": None}, {"rerank": 3}, {"rerank": 0}, {"probes": 300}])
@pytest.mark.parametrize("built", [(700, 8, 10), (150, 11, 7)], indirect=True, ids=["few buckets", "many buckets"])
def test_tables_and_answers_are_those_of_one_process(built, change, assert_same):
    folder, points, ids, settings = built
    index = BuildLSHTable(**settings, **change).build_from_embeddings(points, ids=ids)
    assert_same(folder, index, cone(100, seed=1).astype(np.float32))
    assert_same(folder, index, points[5].astype(np.float32))
    found, expected = (one.search(np.empty((0, 24))) for one in (ShardedIndex(folder, **change), index))
    assert found.ids.shape == expected.ids.shape == (0, 10) and found.cosines.shape == (0, 10)


@pytest.fixture(scope="module")
def built(request, tmp_path_factory):
    """Embeddings with gaps in their ids, in shards, and tables of them."""
    count, hash_size, num_tables = request.param
    folder, points, ids = tmp_path_factory.mktemp("built"), cone(count), np.arange(count) * 3 + 5
    ids[count // 2 :] += np.arange(count - count // 2) % 2
    store_embeddings(folder, points, ids, shard_rows=64)
    build_index(folder, hash_size, num_tables, seed=4)
    return folder, points, ids, {"hash_size": hash_size, "num_tables": num_tables, "seed": 4}


@pytest.mark.parametrize("built", [(700, 8, 10), (150, 11, 7)], indirect=True, ids=["few buckets", "many buckets"])
def test_an_export_is_the_index_of_one_process(built, tmp_path, assert_same):
    folder, points, ids, settings = built
    index = BuildLSHTable(**settings).build_from_embeddings(points, ids=ids)
    exported = ShardedIndex(folder).export(tmp_path / "index")
    for mapped in (True, False):
        loaded = BuildLSHTable.load(exported, mapped=mapped)
        assert_same(folder, loaded, points[:20].astype(np.float32))
        now, memory = (one.snapshot for one in (loaded, index))
        for name in ("ids", "labels", "vectors"):
            np.testing.assert_array_equal(getattr(now, name), getattr(memory, name))
        again = Snapshot.build(memory.coder, now.vectors, now.ids, now.labels)
        for name, array in arrays_of(again).items():  # sorted and laid out as in one process
            np.testing.assert_array_equal(arrays_of(now)[name], array, name)
    with pytest.raises(ValueError, match="other files"):
        ShardedIndex(folder).export(folder)


def test_images_are_embedded_as_in_one_process_and_missing_shards_again(
    tmp_path, image_folder, checkpoint, encoder, assert_same
):
    photos, work = tmp_path / "photos", tmp_path / "work"
    photos.mkdir()
    for path in (image_folder / "train").rglob("*.png"):
        (photos / path.name).write_bytes(path.read_bytes())
    (photos / "blue.5.png").write_bytes(b"no image")
    settings = {"concurrency": 1, "shard_rows": 7, "batch_size": 5}
    embed_images(photos, work, str(checkpoint), **settings)  # opened and embedded by the same actor
    before = files_of(work)
    for lost in sorted(before)[1:3]:
        lost.unlink()
    manifest = embed_images(photos, work, str(checkpoint), **settings, num_gpus=1)  # opened by tasks beside it
    kept = sorted(before)[:1] + sorted(before)[3:]
    assert all(files_of(work)[path] == before[path] for path in kept)
    ids, points, sources = embeddings_of(work)
    files = sorted(photos.iterdir())
    assert [files[i].name for i in ids] == sources and len(ids) == manifest["count"] == len(files) - 1
    (skipped,) = manifest["skipped"]
    assert files[skipped["id"]].name == skipped["source"] == "blue.5.png" and "not recognised" in skipped["reason"]
    expected = encoder.embed([files[i] for i in ids])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(points, expected, atol=2e-3)
    assert points.dtype == np.float16
    build_index(work, **TABLES)
    assert_same(work, BuildLSHTable(**TABLES).build_from_embeddings(points, ids=ids), expected[:3])
    assert ShardedIndex(work).sources(ids[[4, 2, 4]]) == [sources[i] for i in (4, 2, 4)]


def test_texts_are_embedded_with_those_left_out_that_are_none(tmp_path, refused):
    texts = ["a red leaf", None, "a round leaf with spots", " ", "a yellow leaf", 7 * "a green leaf "]
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"caption": texts, "n": range(6)}), tmp_path / "texts" / "0.parquet", row_group_size=4)
    settings = {"modality": "text", "concurrency": 1, "batch_size": 2}
    manifest = embed_images(tmp_path / "texts", tmp_path, column="caption", stored_as="int8", **settings)
    ids, points, sources = embeddings_of(tmp_path)
    assert ids.tolist() == [0, 2, 4, 5] and sources[3] == "0.parquet#5"
    assert [entry["source"] for entry in manifest["skipped"]] == ["0.parquet#1", "0.parquet#3"]
    expected = load_dual_encoder()[1].embed([texts[i] for i in ids])
    points = np.stack([np.frombuffer(row, np.int8) for row in points])
    cosines = np.vecdot(normalise(points), normalise(expected))
    assert cosines.min() > 0.9995
    with refused("column"):
        embed_images(tmp_path / "texts", tmp_path, **settings)


def test_sounds_are_embedded_and_one_that_is_none_is_left_out(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    mels = {"max_length": 64, "num_mel_bins": 32}
    ASTModel(ASTConfig(**small, **mels)).save_pretrained(tmp_path / "ear")
    ASTFeatureExtractor(**mels).save_pretrained(tmp_path / "ear")
    rng = np.random.default_rng(0)
    sounds = [rng.standard_normal(8000 + 1000 * i).tolist() for i in range(4)]
    sounds[2] = []
    (tmp_path / "sounds").mkdir()
    pq.write_table(pa.table({"samples": sounds}), tmp_path / "sounds" / "0.parquet")
    settings = {"modality": "sound", "column": "samples", "concurrency": 1, "batch_size": 2}
    manifest = embed_images(tmp_path / "sounds", tmp_path, str(tmp_path / "ear"), **settings)
    ids, points, _ = embeddings_of(tmp_path)
    assert ids.tolist() == [0, 1, 3] and "row of finite numbers" in manifest["skipped"][0]["reason"]
    expected = load_audio_encoder(tmp_path / "ear").embed([np.float32(sounds[i]) for i in ids])
    np.testing.assert_allclose(points, normalise(expected), atol=2e-3)


def test_eight_bits_find_what_sixteen_find(tmp_path):
    points, found = cone(2000, 64), {}
    for stored_as in ("float16", "int8"):
        work = tmp_path / stored_as
        files = store_embeddings(work, points, shard_rows=500, stored_as=stored_as)["files"]
        build_index(work, **TABLES)
        found[stored_as] = ShardedIndex(work).search(points[:100], 10).ids, sum(file["bytes"] for file in files)
    same = [len(set(one) & set(other)) for one, other in zip(found["float16"][0], found["int8"][0], strict=True)]
    assert np.mean(same) > 9.5 and found["int8"][1] < 0.65 * found["float16"][1]


def test_real_embeddings_have_the_same_tables_and_answers(tmp_path, real, assert_same):
    """The same float16 embeddings and projection give the same rows, and 100 queries the same ids and cosines.

    For the built-in set notebook 9 asserts it.
    """
    images, checkpoint = real / "beans", real / "mobilenet-v1-025"
    candidates, queries = candidates_and_queries(load_images(images))
    encoder = load_encoder(checkpoint)
    points, asked = encoder.embed(candidates).astype(np.float16), encoder.embed(queries)[:100]
    assert len(points) == 1034 and len(asked) == 100
    store_embeddings(tmp_path, points)
    build_index(tmp_path, **TABLES, seed=1)
    index = BuildLSHTable(**TABLES, seed=1).build_from_embeddings(points)
    assert_same(tmp_path, index, asked)
    other = BuildLSHTable(**TABLES, seed=2).build_from_embeddings(points[:200])
    build_index(tmp_path, coder=other.snapshot.coder)
    with pytest.warns(UserWarning, match="mean has moved"):
        other.add(points[200:])
    assert_same(tmp_path, other, asked)


def test_a_rerun_does_nothing_and_new_settings_replace(tmp_path, assert_same):
    work, points = tmp_path / "work", cone(300)
    store_embeddings(work, points, shard_rows=100)
    build_index(work, **TABLES)
    before = files_of(work)
    build_index(work, **TABLES)
    assert files_of(work) == before
    (work / "mine.parquet").write_bytes(b"mine")
    remains = work / "index" / f".imgsim-{'0' * 16}.parquet"  # of a job that was killed the day before yesterday
    remains.write_bytes(b"half written")
    os.utime(remains, times=(time.time() - 2 * 86400,) * 2)
    build_index(work, 5, 3, seed=2)
    assert_same(work, BuildLSHTable(hash_size=5, num_tables=3, seed=2).build_from_embeddings(points), points[:5])
    assert not set(files_of(work / "index")) & set(before)
    assert not remains.exists() and (work / "mine.parquet").exists()
    store_embeddings(work, points[:200], shard_rows=100)
    with pytest.raises(ValueError, match="build it again"):
        ShardedIndex(work)
    assert len(list((work / "embeddings").glob("*.parquet"))) == 2


def test_a_cluster_that_runs_is_not_joined_with_another_token(tmp_path, joining):
    store_embeddings(tmp_path, cone(200))
    command = [sys.executable, "-m", "imgsim", "scale", "build", str(tmp_path)]
    refused = subprocess.run(command, env=joining | {"RAY_AUTH_TOKEN": "0" * 64}, capture_output=True, timeout=PATIENCE)
    assert refused.returncode == 1 and not (tmp_path / "index" / "manifest.json").exists()
