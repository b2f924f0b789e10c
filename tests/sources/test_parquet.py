"""Parquet datasets as the Hub stores them: names, splits, columns and labels, broken rows, streams."""

import io
import types
import zipfile

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from oddities import contents

from imgsim import BuildLSHTable, candidates_and_queries, load_images
from imgsim.sources.decode import open_or_error, why_unreadable
from imgsim.sources.names import add_options, join_source, split_source
from imgsim.sources.splits import encode_labels, labels_of


@pytest.fixture(autouse=True)
def own_datasets_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pictures(draw):
    """A function that gives the stored form of n images."""

    def some(n, first=0):
        return [{"bytes": contents(draw(first + i)), "path": f"{first + i}.png"} for i in range(n)]

    return some


@pytest.fixture
def publish(tmp_path):
    """A function that writes splits {name: columns} as the Hub stores them; returns the folder."""

    def write(splits, features, folder="published"):
        for name, columns in splits.items():
            file = tmp_path / folder / "data" / f"{name}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(columns, Features(features)).to_parquet(file)
        return tmp_path / folder

    return write


def stored(split):
    return [one["bytes"] for one in split.cast_column("image", Image(decode=False))["image"]]


@pytest.mark.parametrize("name", ["owner/name", "owner/name@v1", "/data/photos", "C:\\photos"])
@pytest.mark.parametrize("options", [{}, {"split": "train"}, {"image": "a photo", "label": "Größe & Art=?"}])
def test_options_are_part_of_a_name(name, options):
    assert split_source(join_source(name, options)) == (name, options)


@pytest.mark.parametrize(
    "query", ["", "split", "split=", "split=a&split=b", "colour=red", "split=a&colour=red", "split=a;label=b&"]
)
def test_unknown_options_are_refused_with_those_there_are(query, refused):
    with refused("config=..., split=..., image=..., label=..."):
        load_images(f"owner/name?{query}")


def test_options_are_added_once(tmp_path, refused):
    assert add_options("owner/name", "v1", split="test") == "owner/name@v1?split=test"
    assert add_options("owner/name?split=test", label="a b") == "owner/name?split=test&label=a+b"
    assert add_options("owner/name") == "owner/name"
    for source, revision, options, named in [
        ("owner/name?split=test", None, {"split": "test"}, "split"),
        ("owner/name@v1", "v2", {}, "revision"),
        ("builtin", None, {"split": "test"}, "built-in"),
        ("builtin", "v1", {}, "built-in"),
        (str(tmp_path), "v1", {}, "folder"),
    ]:
        with refused(named):
            add_options(source, revision, **options)
    with refused("built-in"):
        load_images("builtin?split=test")


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("picture", "fine")])
def test_columns_are_found_and_named_as_those_of_beans(image, label, publish, pictures):
    columns = {"id": [7, 8, 9], label: [1, 0, 1], image: pictures(3)}
    features = {"id": Value("int64"), label: ClassLabel(names=["a", "b"]), image: Image()}
    loaded = load_images(publish({"train": columns}, features))["train"]
    assert set(loaded.column_names) == {"id", "image", "labels"}
    assert loaded["labels"] == [1, 0, 1] and loaded.features["labels"].names == ["a", "b"]
    assert stored(loaded) == [one["bytes"] for one in pictures(3)]


@pytest.fixture
def several(publish, pictures):
    """A dataset with two image columns and four of labels, in two splits."""
    features = {"photo": Image(), "image": Image(), "species": Value("string"), "ripe": Value("bool")}
    features |= {"grade": Value("int32"), "labels": ClassLabel(names=["x", "y"]), "weight": Value("float32")}

    def columns(first):
        columns = {"photo": pictures(4, first + 100), "image": pictures(4, first), "ripe": [True, False, True, True]}
        columns |= {"species": ["oak", None, "ash", "oak"] if first == 0 else ["elm", "ash", "elm", "oak"]}
        return columns | {"grade": [5, 9, -1, None], "labels": [0, 1, 1, 0], "weight": [0.5] * 4}

    return publish({"train": columns(0), "test": columns(50)}, features)


@pytest.mark.parametrize(
    ("label", "train", "test", "names"),
    [
        ("species", [2, -1, 0, 2], [1, 0, 1, 2], ["ash", "elm", "oak"]),
        ("ripe", [1, 0, 1, 1], [1, 0, 1, 1], None),
        ("grade", [5, 9, -1, -1], [5, 9, -1, -1], None),
        ("labels", [0, 1, 1, 0], [0, 1, 1, 0], ["x", "y"]),
        (None, [0, 1, 1, 0], [0, 1, 1, 0], ["x", "y"]),
    ],
)
def test_a_label_column_is_chosen(label, train, test, names, several):
    images = load_images(join_source(str(several), {"label": label} if label else {}))
    assert labels_of(images["train"]).tolist() == train and labels_of(images["test"]).tolist() == test
    assert getattr(images["train"].features["labels"], "names", None) == names


def test_an_image_column_and_a_split_are_chosen(several, pictures):
    images = load_images(f"{several}?split=test&image=photo&label=species")
    assert list(images) == ["test"] and stored(images["test"]) == [one["bytes"] for one in pictures(4, 150)]
    assert stored(load_images(several)["train"]) == [one["bytes"] for one in pictures(4)]  # called image


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("split=dev", "no split 'dev', only train, test"),
        ("image=img", "no column 'img', only photo, image"),
        ("label=colour", "no column 'colour', only photo, image"),
        ("image=species", "no readable image: train, row 0: there is no image"),
        ("image=weight", "'weight' holds no images"),
        ("label=weight", "'weight' holds no labels"),
        ("label=photo", "'photo' holds no labels"),
        ("config=other", "other"),
    ],
)
def test_what_a_data_set_does_not_have_is_one_sentence(query, named, several, refused):
    with refused(named):
        load_images(f"{several}?{query}")


def test_captions_are_no_labels_and_names_that_repeat_are(publish, pictures):
    features = {"image": Image(), "label": Value("string")}
    folder = publish({"train": {"image": pictures(4), "label": ["a", "b", "c", "d"]}}, features, "captions")
    assert "labels" not in load_images(folder)["train"].column_names
    folder = publish({"train": {"image": pictures(4), "label": ["b", "a", "b", "a"]}}, features, "names")
    assert load_images(folder)["train"]["labels"] == [1, 0, 1, 0]


def test_images_as_pandas_writes_them(tmp_path, pictures):
    frame = pd.DataFrame({"photo": pictures(3), "label": [2, 0, 1]})
    (tmp_path / "frame").mkdir()
    frame.to_parquet(tmp_path / "frame" / "train.parquet")
    images = load_images(tmp_path / "frame")["train"]
    assert images[0]["image"].size == (40, 30) and images["labels"] == [2, 0, 1]


def test_images_as_plain_bytes_in_a_column_called_image(tmp_path, pictures):
    pd.DataFrame({"image": [one["bytes"] for one in pictures(3)]}).to_parquet(tmp_path / "train.parquet")
    assert load_images(tmp_path)["train"][2]["image"].size == (40, 30)


@pytest.mark.parametrize("stray", [1, 3])
def test_stray_pictures_beside_images_in_parquet_change_nothing_but_are_said(stray, publish, pictures, draw, capsys):
    columns = {"image": pictures(3), "label": [0, 1, 1]}
    splits = {"train": columns, "test": {name: column[:2] for name, column in columns.items()}}
    folder = publish(splits, {"image": Image(), "label": ClassLabel(names=["a", "b"])})
    before = load_images(folder)
    for i in range(stray):
        draw(i).save(folder / f"logo {i}.png")
    images = load_images(folder)
    assert {name: split["labels"][:] for name, split in images.items()} == {"train": [0, 1, 1], "test": [0, 1]}
    assert images["train"].features == before["train"].features
    assert [entry["path"] for entry in images.skipped] == [f"logo {i}.png" for i in range(stray)]
    assert "logo 0.png" in capsys.readouterr().out


def test_a_stray_table_of_images_beside_photos_changes_nothing_but_is_said(publish, pictures, draw):
    folder = publish({"train": {"image": pictures(2)}}, {"image": Image()})
    for i in range(4):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        draw(i).save(folder / "ab"[i % 2] / f"{i}.png")
    images = load_images(folder)
    assert images["train"]["labels"][:] == [0, 0, 1, 1]
    assert [entry["path"] for entry in images.skipped] == ["data/train-00000-of-00001.parquet"]


def test_a_data_set_without_images_is_refused(publish, refused):
    folder = publish({"train": {"text": ["a"]}}, {"text": Value("string")})
    with refused("no column holds images, only text"):
        load_images(folder)


def test_a_damaged_parquet_file_is_one_sentence(publish, pictures, refused):
    folder = publish({"train": {"image": pictures(2)}}, {"image": Image()})
    file = next(folder.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-50])
    with refused(folder):
        load_images(folder)


def test_a_parquet_file_in_a_hidden_folder_makes_no_data_set(tmp_path, draw):
    (tmp_path / "set" / ".cache").mkdir(parents=True)
    (tmp_path / "set" / ".cache" / "x.parquet").touch()
    draw(0).save(tmp_path / "set" / "1.png")
    assert len(load_images(tmp_path / "set")["train"]) == 1


def test_broken_rows_are_left_out_and_listed(publish, pictures, capsys, monkeypatch):
    columns = {"image": pictures(6), "label": [0, 1, 2, 3, 4, 5]}
    columns["image"][1] = {"bytes": b"text", "path": "1.png"}
    columns["image"][3] = None
    columns["image"][4]["bytes"] = columns["image"][4]["bytes"][:-30]
    features = {"image": Image(), "label": Value("int64")}
    folder = publish({"train": columns, "test": {"image": pictures(2), "label": [0, 1]}}, features)
    decoded = []
    monkeypatch.setattr("imgsim.sources.decode.why_unreadable", lambda one: decoded.append(1) or why_unreadable(one))
    for count in (8, 3):  # the second time only what was broken
        decoded.clear()
        images = load_images(folder)
        assert images["train"]["labels"] == [0, 2, 5] and len(images["test"]) == 2
        assert [entry["path"] for entry in images.skipped] == ["train, row 1", "train, row 3", "train, row 4"]
        assert "Left out 3 of 8" in capsys.readouterr().out and len(decoded) == count


def test_a_data_set_of_broken_rows_only_is_refused(publish, refused):
    folder = publish({"train": {"image": [{"bytes": b"text", "path": None}]}}, {"image": Image()})
    with refused("no readable image"):
        load_images(folder)


def test_a_revision_in_the_local_cache_needs_no_network(publish, pictures, tmp_path, monkeypatch):
    commit, repository = "1" * 40, tmp_path / "hub" / "datasets--some--set"
    columns, features = {"img": pictures(2), "species": ["a", "b"]}, {"img": Image(), "species": Value("string")}
    publish({"test": columns}, features, f"hub/datasets--some--set/snapshots/{commit}")
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("the Hub was asked"))
    images = load_images(add_options("some/set", "v1", split="test", image="img", label="species"))
    assert list(images) == ["test"] and images["test"]["labels"] == [0, 1]


def test_where_a_split_has_no_labels_at_all_neither_has():
    labels = {"train": [0, 1, 2], "test": [-1, -1, None]}
    images = DatasetDict({name: Dataset.from_dict({"labels": column}) for name, column in labels.items()})
    images = images.map(lambda row, i: {"at": i}, with_indices=True)
    assert all(labels_of(split) is None for split in candidates_and_queries(images))
    assert labels_of(images["train"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ([2, 0, None, -1, -7], [2, 0, -1, -1, -1]),
        (["b", None, "a", "b"], [1, -1, 0, 1]),
        ([True, False], [1, 0]),
        ([None, None], None),
        ([-1, -1], None),
        ([], []),
    ],
)
def test_labels_as_numbers(labels, numbers):
    assert (None if numbers is None else encode_labels(labels).tolist()) == numbers
    assert numbers is not None or encode_labels(labels) is None


@pytest.mark.parametrize("kind", ["names", "classes", "none"])
def test_an_index_of_a_stream_is_that_of_the_loaded_set(kind, publish, pictures, encoder):
    columns, features = {"image": pictures(20)}, {"image": Image()}
    if kind != "none":
        columns["labels"] = ["oak", "ash"] * 10 if kind == "names" else [1, 0] * 10
        features["labels"] = Value("string") if kind == "names" else ClassLabel(names=["ash", "oak"])
    folder = publish({"train": columns}, features)
    files = str(folder / "data" / "*.parquet")
    stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
    streamed = BuildLSHTable(encoder, batch_size=6).build(stream)
    loaded = BuildLSHTable(encoder, batch_size=6).build(load_images(folder)["train"])
    np.testing.assert_allclose(streamed.vectors, loaded.vectors, atol=1e-5)
    assert (streamed.lsh.codes == loaded.lsh.codes).mean() > 0.98  # all but where rounding turns a sign
    np.testing.assert_array_equal(streamed.ids, loaded.ids)
    np.testing.assert_array_equal(streamed.labels, loaded.labels)
    np.testing.assert_array_equal(streamed.keys, loaded.keys)


@pytest.mark.skipif(
    int(datasets.__version__.split(".")[0]) < 5, reason="datasets before 5 cannot stream images that are missing"
)
def test_a_stream_is_read_batch_by_batch_and_what_is_broken_passed_over(encoder, pictures, capsys):
    read = []

    def rows():
        for i, picture in enumerate(pictures(10)):
            read.append(i)
            yield {"image": None if i == 3 else {"bytes": b"text", "path": None} if i == 7 else picture, "labels": i}

    features = Features({"image": Image(), "labels": Value("int64")})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    seen = []

    class Watched:
        dim, describe = encoder.dim, encoder.describe

        def embed(self, images, batch_size):
            seen.append((len(images), len(read)))
            return encoder.embed(images, batch_size)

    index = BuildLSHTable(Watched(), batch_size=4).build(stream)
    assert [n for n, _ in seen] == [3, 3, 2] and seen[0][1] < 10
    assert index.ids.tolist() == index.labels.tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    assert "Left out 2 images of the stream" in capsys.readouterr().out


def paths_of_the_reader(folder, draw):
    """Paths that a row may name and nobody may open, and one of a file that is no picture's."""
    draw(0).save(folder / "private.png")
    draw(0).save(folder / "private.eps")
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.write(folder / "private.png", "a.png")
    private = folder / "private.png"
    return [
        str(private),
        f"file://{private}",
        f"local://{private}",
        f"zip://a.png::{folder}/x.zip",
        "/dev/zero",
        f"zip://a.png::file://{folder}/x.zip::hf://",
        "http://127.0.0.1:9/a.png",
        f"file://{folder}/private.eps",
        "~/a.png",
    ]


def test_rows_never_open_files_of_the_reader(tmp_path, publish, pictures, draw, encoder, monkeypatch, refused):
    monkeypatch.setattr("PIL.Image.open", lambda *any, **how: pytest.fail("a file was opened"))
    paths = paths_of_the_reader(tmp_path, draw)
    rows = [{"bytes": None, "path": path} for path in paths]
    assert all("holds no image" in open_or_error(row) for row in (*rows, *paths))
    folder = publish({"train": {"image": [None]}}, {"image": Image()})
    table = pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    pq.write_table(table, next(folder.rglob("*.parquet")))
    with refused("there is no image"):
        load_images(folder)


def test_rows_may_name_files_on_the_hub(monkeypatch, draw):
    monkeypatch.setattr(fsspec, "open", lambda url: types.SimpleNamespace(open=lambda: io.BytesIO(contents(draw(0)))))
    for path in ("hf://datasets/a/b/1.png", "zip://1.png::hf://datasets/a/b/x.zip"):
        assert open_or_error({"bytes": None, "path": path}).size == (40, 30)


def test_a_stream_of_unknown_columns(encoder, pictures, refused):
    stream = datasets.IterableDataset.from_generator(lambda: ({"image": picture} for picture in pictures(3)))
    assert len(BuildLSHTable(encoder).build(stream)) == 3
    with refused("no column 'image', only text"):
        BuildLSHTable(encoder).build(datasets.IterableDataset.from_generator(lambda: iter([{"text": "a"}])))
    with refused("no rows"):
        features = Features({"image": Image()})
        BuildLSHTable(encoder).build(datasets.IterableDataset.from_generator(lambda: iter(()), features=features))
