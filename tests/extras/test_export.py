"""An index in other tools' forms gives the same neighbours."""

import fnmatch
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from imgsim import BuildLSHTable
from imgsim.extras import export

pandas = pytest.importorskip("pandas", reason="the extra notebooks is not installed")


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(0)
    ids = rng.permutation(10_000)[:200]
    labels = rng.integers(-1, 3, 200)
    keys = [f"photos/{number}\udcff.jpg" if number % 10 else None for number in ids]  # not UTF-8
    return BuildLSHTable(hash_size=4, num_tables=4, probes=15, rerank=None).build_from_embeddings(
        rng.standard_normal((200, 24)), labels, ids, keys
    )


def expected(index):
    return index.search(index.vectors[:20], 5)


@pytest.mark.parametrize("neighbours", [0, 16])
def test_faiss_finds_the_same_ids_and_cosines(index, neighbours):
    pytest.importorskip("faiss")
    cosines, ids = export.to_faiss(index, neighbours).search(index.vectors[:20], 5)
    found = expected(index)
    assert (ids == found.ids).mean() >= (0.95 if neighbours else 1)
    assert neighbours or np.allclose(cosines, found.cosines, atol=1e-5)


def test_a_dataset_takes_a_faiss_index(index):
    pytest.importorskip("faiss")
    dataset = export.to_dataset(index)
    dataset.add_faiss_index("embedding", metric_type=0)  # inner product
    _, rows = dataset.search("embedding", index.vectors[3], 5)
    assert [dataset[int(row)]["id"] for row in rows] == expected(index).ids[3].tolist()


def test_parquet_read_back_gives_the_same_arrays(index, tmp_path):
    export.to_parquet(index, tmp_path / "index.parquet")
    table = pandas.read_parquet(tmp_path / "index.parquet")
    assert list(table) == ["id", "key", "label", "embedding"]
    assert table["id"].tolist() == index.ids.tolist()
    assert table["label"].fillna(-1).astype(int).tolist() == index.labels.tolist()
    assert np.array_equal(np.stack(table["embedding"]), index.vectors)
    shown = [key.replace("\udcff", "\ufffd") for key in index.keys]
    assert [key if isinstance(key, str) else "" for key in table["key"]] == shown
    assert "" in index.keys
    assert [path.name for path in tmp_path.iterdir()] == ["index.parquet"]


def test_answers_become_a_table(index):
    found = index.search(np.vstack([index.vectors[:1], np.full((1, 24), 1e-9)]), 300)
    table = found.to_pandas()
    assert list(table) == ["query", "rank", "id", "key", "cosine"]
    assert len(table) == (found.ids >= 0).sum() and table["id"].iloc[0] == index.ids[0]
    named = [key.replace("\udcff", "\ufffd") for key in found.keys[found.ids >= 0]]
    assert table["key"].fillna("").tolist() == named
    first = table[table["query"] == 0]
    assert first["rank"].tolist() == list(range(1, len(first) + 1)) and first["cosine"].is_monotonic_decreasing


def test_one_query_becomes_a_table_too(images, encoder):
    index = BuildLSHTable(encoder, hash_size=2, num_tables=2).build(images["train"])
    matches = index.query(images["train"][3]["image"], top_k=4, verbose=False)
    assert matches.to_pandas()["id"].tolist() == matches.ids.tolist()


class StubHub:
    """What of the Hub's API is used, on a folder."""

    root: Path

    def create_repo(self, repo_id, private=False, exist_ok=False):
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path, allow_patterns, delete_patterns):
        for path in (self.root / repo_id).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in delete_patterns):
                path.unlink()
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True, ignore=others_than(allow_patterns))

    @classmethod
    def snapshot_download(cls, repo_id, revision=None, allow_patterns=()):
        target = cls.root / "cache" / repo_id
        shutil.rmtree(target, ignore_errors=True)
        return str(shutil.copytree(cls.root / repo_id, target, ignore=others_than(allow_patterns)))


def others_than(patterns):
    """What copytree is to leave out: names that none of the patterns describes."""
    return lambda _, names: [name for name in names if not any(fnmatch.fnmatch(name, part) for part in patterns)]


def test_an_index_goes_to_the_hub_and_comes_back(index, tmp_path, monkeypatch):
    StubHub.root = tmp_path
    monkeypatch.setattr("huggingface_hub.HfApi", StubHub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", StubHub.snapshot_download)
    (tmp_path / "figure.png").write_bytes(b"picture")
    export.push_to_hub(BuildLSHTable().build_from_embeddings(np.eye(8)), "me/leaves")  # an earlier index
    address = export.push_to_hub(index, "me/leaves", {"recall_at_10": 0.987}, tmp_path / "figure.png")
    assert address.endswith("/me/leaves")
    names = {path.name for path in (tmp_path / "me" / "leaves").iterdir()}
    arrays = json.loads((tmp_path / "me" / "leaves" / "manifest.json").read_text())["arrays"]
    expected_names = {"README.md", "gallery.png", "manifest.json"} | {f"{name}-{arrays[name]}.npy" for name in arrays}
    assert names == expected_names
    card = (tmp_path / "me" / "leaves" / "README.md").read_text()
    assert "| hash_size | 4 |" in card and "| recall_at_10 | 0.987 |" in card and "200 images" in card
    again = export.load_from_hub("me/leaves").search(index.vectors[:20], 5)
    assert np.array_equal(again.ids, expected(index).ids) and np.array_equal(again.cosines, expected(index).cosines)


def test_a_path_on_this_machine_does_not_go_to_the_hub(images, encoder, tmp_path, monkeypatch):
    StubHub.root = tmp_path
    monkeypatch.setattr("huggingface_hub.HfApi", StubHub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", StubHub.snapshot_download)
    index = BuildLSHTable(encoder, hash_size=2, num_tables=2).build(images["train"])
    export.push_to_hub(index, "me/noise")
    assert str(encoder.name) not in (tmp_path / "me" / "noise" / "manifest.json").read_text()
    again = export.load_from_hub("me/noise", encoder)
    assert np.array_equal(again.search(index.vectors, 3).ids, index.search(index.vectors, 3).ids)
