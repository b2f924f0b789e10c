"""Parquet shards and where images come from, without Ray: here, and on a file system that is not this machine's."""

import os
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsim.extras.cli import main
from imgsim.extras.runs.settings import short_digest
from imgsim.extras.scale import sources
from imgsim.extras.scale.actors import open_images
from imgsim.extras.scale.embed import store_embeddings
from imgsim.extras.scale.index import ShardedIndex
from imgsim.extras.scale.parts import SortedFile, read_footers, read_groups
from imgsim.extras.scale.shards import Shards, as_array, as_bytes, as_lists, with_metadata
from imgsim.extras.scale.sources import list_images, read_images
from imgsim.images import candidates_and_queries

JOB = short_digest("a job")


@pytest.fixture
def far():
    """The address of an empty folder on a file system in memory, which stands for an object store."""
    fs = fsspec.filesystem("memory")
    yield "memory://bucket/folder"
    fs.rm("/bucket", recursive=True) if fs.exists("/bucket") else None


@pytest.fixture(params=["here", "far away"])
def shards(request, tmp_path):
    return Shards.at(tmp_path if request.param == "here" else request.getfixturevalue("far"), "deep")


def table(start=0, count=10):
    return pa.table({"id": np.arange(start, start + count), "source": [f"{i}.jpg" for i in range(count)]})


def names(shards):
    return sorted(file.removeprefix(shards.path + "/") for file in shards.fs.find(shards.path, withdirs=False))


def test_a_shard_is_finished_when_it_is_there_and_content_when_the_manifest_says_so(shards, refused):
    with refused(shards.path):
        shards.manifest()
    first = shards.write_table("part-00000", JOB, with_metadata(table(), first=0), 4)
    assert shards.write_table("part-00000", JOB, with_metadata(table(), first=0), 4) == first  # twice does no harm
    shards.write_table("part-00001", short_digest("another"), table(), 4)
    assert shards.finished(JOB) == {"part-00000": first}
    with refused("part-00001"):
        shards.describe(JOB, ["part-00000", "part-00001"])
    (entry,) = shards.describe(JOB, ["part-00000"])
    assert entry["rows"] == 10 and entry["first"] == 0 and entry["name"] == first and entry["bytes"] > 100
    shards.write("notes.txt", b"mine")
    shards.publish({"files": [entry], "count": 10})
    assert names(shards) == ["manifest.json", "notes.txt", first]
    assert shards.manifest()["count"] == 10
    assert shards.read(first).equals(with_metadata(table(), first=0))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 0, "files": []}', '{"format": 1}'])
def test_a_manifest_of_another_kind_is_refused(content, shards, refused):
    shards.write("manifest.json", content.encode())
    with refused(shards.path):
        shards.manifest()


def test_a_damaged_or_missing_shard_is_named(shards, refused):
    name = shards.write_table("part-00000", JOB, table(), 4)
    content = bytearray(shards.fs.cat_file(f"{shards.path}/{name}"))
    for damaged in (content[:-1], content[:50], b"", content[:60] + b"x" + content[61:]):
        shards.write(name, damaged)
        with refused(name):
            shards.read(name)
    shards.fs.rm_file(f"{shards.path}/{name}")
    with refused(name):
        shards.read(name)
    (error,) = read_footers(shards, {name: 100}).values()
    assert isinstance(error, FileNotFoundError)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.sets(st.integers(0, 310)), st.integers(1, 40))
def test_select_finds_all_rows_and_reads_no_group_without_need(keys, values, group):
    keys, values = np.sort(np.array(keys)), np.array(sorted(values), np.int64)
    shards = Shards(fsspec.filesystem("memory"), "/bucket/select")
    rows = pa.table({"hash": keys.astype(np.uint16), "id": np.arange(len(keys))})
    name = shards.write_table("part-00000", JOB, rows, group)
    footer = read_footers(shards, {name: shards.fs.size(f"/bucket/select/{name}")})[name]
    groups = SortedFile(footer, "hash").groups(values.astype(np.uint64))
    (found,) = read_groups(shards, [(name, footer, groups)], ["hash", "id"])
    assert set(np.flatnonzero(np.isin(keys, values))) <= set(found["id"].to_pylist())
    found = found.filter(np.isin(found["hash"].to_numpy(), values))
    assert found["id"].to_pylist() == np.flatnonzero(np.isin(keys, values)).tolist()
    groups = SortedFile(footer, "id").groups(values)
    assert groups == np.unique(values[values < len(keys)] // group).tolist()


@pytest.mark.parametrize("column", ["id", "source"])
def test_only_what_is_asked_for_is_read_in_one_round(column, shards):
    """A footer longer than expected takes one more."""
    tables = [table(start, 4000) for start in (0, 4000)]
    names = [shards.write_table(f"part-0000{i}", JOB, tables[i], 4) for i in range(2)]
    sizes = {name: shards.fs.size(f"{shards.path}/{name}") for name in names}
    with mock.patch.object(Shards, "fetch", autospec=True, side_effect=Shards.fetch) as fetch:
        footers = read_footers(shards, sizes)
        assert fetch.call_count == 2
        wanted = [(names[0], footers[names[0]], [2, 3, 9]), (names[1], footers[names[1]], [0])]
        found = list(read_groups(shards, wanted, [column]))
        assert fetch.call_count == 3
    read = sum(end - start for _, start, end in fetch.call_args.args[1])
    assert found[0].equals(pa.concat_tables([tables[0].slice(8, 8), tables[0].slice(36, 4)]).select([column]))
    assert found[1].equals(tables[1].slice(0, 4).select([column])) and read < 1000


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arrays_come_back_from_lists_and_bytes(dtype):
    rows = np.random.default_rng(0).standard_normal((9, 5)).astype(dtype)
    for column in (as_lists(rows), as_bytes(rows)):
        pieces = pa.chunked_array([column.slice(0, 4), column.slice(4, 0), column.slice(4)])
        np.testing.assert_array_equal(as_array(pieces, dtype), rows)
        assert as_array(pa.chunked_array([column.slice(0, 0)]), dtype).shape == (0, 5)


def test_embeddings_from_elsewhere_are_checked(tmp_path, refused):
    points = np.ones((4, 3), np.float32)
    for ids in ([0, 1, 2], [0, 1, 1, 2], [3, 2, 1, 0], [-1, 0, 1, 2]):
        with refused("ids"):
            store_embeddings(tmp_path, points, ids)
    for shard_rows in (0, 1.5, -2):
        with refused("shard_rows"):
            store_embeddings(tmp_path, points, shard_rows=shard_rows)
    for value in (np.nan, 1e6):
        with refused("finite"):
            store_embeddings(tmp_path, points * value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", ["--batch-size 0", "--concurrency 0", "--concurrency -1", "--max-bad -1", "--num-gpus -1", "--dtype int8"]
)
def test_wrong_options_are_refused_before_anything_starts(wrong, tmp_path, capsys):
    pytest.importorskip("ray")
    assert main(["scale", "embed", "builtin", str(tmp_path), *wrong.split()]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and wrong.split()[0][2:].replace("-", "_") in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def photos(tmp_path, draw):
    """A tree of five images, one of them a link, among other files; and the same without the link far away."""
    for name in ("b/2.png", "b/1.PNG", "a.jpg", "a/0.webp"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        draw(len(name)).save(tmp_path / "photos" / name)
    for name in ("notes.txt", ".hidden.png", "README"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    os.symlink(tmp_path / "photos" / "a.jpg", tmp_path / "photos" / "z.jpg")
    return tmp_path / "photos"


def test_images_of_a_tree_are_found_in_order_and_read_in_pieces(photos, far, monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 3)
    images = list_images(photos)
    assert images.files == ["a.jpg", "a/0.webp", "b/1.PNG", "b/2.png", "z.jpg"] and len(images) == 5
    (photos / "z.jpg").unlink()
    fsspec.filesystem("memory").put(str(photos), "/bucket/folder", recursive=True)
    for address in (photos, f"file://{photos}", far):
        images = list_images(address)
        pieces = list(images.pieces(0, 7))
        assert [(piece["id"], piece["count"]) for piece in pieces] == [(0, 3), (3, 1)]
        named = [one for piece in pieces for one in read_images(images.folder, images.column, piece)]
        assert [name for name, _ in named] == images.files
        batch = pa.Table.from_pylist(pieces[:1])
        seen = list(
            open_images(batch, images.folder, None, lambda images, **_: {"pixel_values": np.ones((len(images), 1))}, 2)
        )
        assert [part["id"].tolist() for part in seen] == [[0, 1], [2]] and not any(seen[0]["reason"] != "")
    assert list_images(photos / "a.jpg").files == ["a.jpg"]
    pq.write_table(pa.table({"file": ["a.jpg"]}), photos / "captions.parquet")
    os.rename(photos / "a.jpg", photos / "a.jpg~")
    assert list_images(photos).files == ["a.jpg~", "a/0.webp", "b/1.PNG", "b/2.png"]
    os.rename(photos / "a.jpg~", photos / "a.jpg")
    before = list_images(photos).version
    os.utime(photos / "a.jpg", (1, 1))
    assert list_images(photos).version != before


def test_the_built_in_images_are_the_candidates_in_their_order(image_folder, images, monkeypatch):
    monkeypatch.setattr("imgsim.sources.builtin.builtin_folder", lambda: image_folder)
    found, (candidates, _) = list_images("builtin"), candidates_and_queries(images)
    assert [f"{found.folder.path}/{file}" for file in found.files] == candidates["image_file_path"][:]


def test_images_in_parquet_keep_their_place_across_files_and_row_groups(tmp_path, images, far, refused):
    for number in range(3):
        images["train"].shard(3, number, contiguous=True).to_parquet(
            tmp_path / "data" / f"{number}.parquet", batch_size=3
        )
    fsspec.filesystem("memory").put(str(tmp_path / "data"), "/bucket/folder", recursive=True)
    for address in (tmp_path / "data", far):
        found = list_images(address)
        assert len(found) == 24 and found.column == "image" and found.row_groups == [[3, 3, 2]] * 3
        for first, last in ((0, 24), (2, 9), (7, 8), (15, 99)):
            pieces = list(found.pieces(first, last))
            ids = [i for piece in pieces for i in range(piece["id"], piece["id"] + piece["count"])]
            named = [one for piece in pieces for one in read_images(found.folder, found.column, piece)]
            assert ids == list(range(first, min(last, 24)))
            assert [name for name, _ in named] == [f"{i // 8}.parquet#{i % 8}" for i in ids]
            paths = images["train"].select(ids)["image_file_path"]
            assert [source["path"] for _, source in named] == [os.path.basename(path) for path in paths] or [
                source["path"] for _, source in named
            ] == paths
    with refused("labels"):
        list_images(tmp_path / "data", "no such column")
    (tmp_path / "data" / "9.parquet").write_bytes(b"no Parquet")
    assert list_images(tmp_path / "data").skipped[0]["source"] == "9.parquet"
    with refused("9.parquet"):
        list_images(tmp_path / "data" / "9.parquet")


@pytest.mark.parametrize("address", ["/no/such/folder", "memory://nothing", "nosuch://bucket/folder"])
def test_an_address_without_images_is_refused(address, refused):
    with refused(address.rpartition("/")[0]):
        list_images(address)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("imgsim.sources.errors.find_spec", lambda name: None if name == "ray" else True)
    for arguments in (["embed", "builtin", str(tmp_path)], ["build", str(tmp_path)]):
        assert main(["scale", *arguments]) == 1
        assert 'pip install "ray[data]"' in capsys.readouterr().err
    assert main(["scale", "query", str(tmp_path), "photo.jpg"]) == 1
    assert "no finished shards" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no finished shards"):
        ShardedIndex(tmp_path)
