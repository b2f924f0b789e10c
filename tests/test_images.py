"""Image folders, their splits and labels, what is left out of them, and the choice of candidates and queries."""

import os
from pathlib import Path

import pandas as pd
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from imgsim import candidates_and_queries, load_images
from imgsim.sources import builtin as leaves
from imgsim.sources.decode import why_unreadable
from imgsim.sources.splits import fingerprint, labels_of


@pytest.fixture
def put(tmp_path, draw):
    """A function that writes small images under these names into a folder, which it returns."""

    def write(*names):
        for i, name in enumerate(names):
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(i).save(path)
        return tmp_path / "set"

    return write


def test_a_folder_with_splits_and_classes(image_folder, images):
    assert list(images) == ["train", "validation", "test"]
    assert {name: len(split) for name, split in images.items()} == {"train": 24, "validation": 6, "test": 9}
    for name, split in images.items():
        assert set(split.column_names) == {"image_file_path", "image", "labels"}
        assert split.features["labels"].names == ["blue", "green", "red"]
        for row in split:
            path = Path(row["image_file_path"])
            assert path.parts[-3:-1] == (name, split.features["labels"].int2str(row["labels"]))
            assert path.is_relative_to(image_folder) and row["image"] == PIL.Image.open(path)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("Train", "Validation", "Testing"), ["train", "validation", "test"]),
        (("TRAINING", "val", "test"), ["train", "validation", "test"]),
        (("train", "valid"), ["train", "validation"]),
        (("train", "dev"), ["train", "validation"]),
        (("test",), ["test"]),
        (("training_set", "test_set"), ["train", "test"]),
        (("seg_train", "seg_test"), ["train", "test"]),
        (("train2017", "val2017"), ["train", "validation"]),
        (("Train Data", "eval"), ["train", "test"]),
        (("2.TRAINING", "1.evaluation"), ["train", "test"]),
        (("my test photos/train", "my test photos/val"), ["train", "validation"]),
    ],
)
def test_split_folders_go_by_several_names(names, splits, put):
    folder = put(*(f"{name}/{label}/{i}.png" for name in names for label in ("a", "b") for i in range(2)))
    images = load_images(str(folder))
    assert list(images) == splits and all(split["labels"] == [0, 0, 1, 1] for split in images.values())


@pytest.mark.parametrize("names", [("restrained", "contest"), ("cats/train", "dogs/train", "cats/test", "dogs/test")])
def test_what_only_looks_like_splits_are_classes(names, put):
    images = load_images(put(*(f"{name}/{i}.png" for name in names for i in range(2))))
    assert list(images) == ["train"] and len(images["train"].features["labels"].names) == 2 and not images.skipped


@pytest.mark.parametrize("around", ["data/", ""])
def test_a_stray_picture_or_table_changes_neither_splits_nor_labels(around, put):
    folder = put(*(f"{around}{split}/{label}/1.png" for split in ("train", "test") for label in "ab"), "docs/logo.png")
    pd.DataFrame({"file": ["1.png"]}).to_parquet(folder / "captions.parquet")
    images = load_images(folder)
    assert {name: split["labels"][:] for name, split in images.items()} == {"train": [0, 1], "test": [0, 1]}
    assert [entry["path"] for entry in images.skipped] == ["docs/logo.png"]


NAMES = ["a.jpg?w=600", "b.jpg:large", "c.jpg~", "d.apng", "e.JPG ", "f.jpg.1", "g.dat", "h.webp!d", "photo 12.30"]


def test_images_are_found_whatever_they_are_called(tmp_path, draw):
    for i, name in enumerate(NAMES):
        draw(i).save(tmp_path / name, ["PNG", "JPEG", "WEBP", "TIFF"][i % 4])
    draw(0).save(tmp_path / "i.jp2")
    draw(0).save(tmp_path / "j.ppm")
    (tmp_path / "notes.txt").write_text("a text of more than thirty-two bytes, which is no image")
    os.mkfifo(tmp_path / "pipe")
    images = load_images(tmp_path)
    assert [Path(path).name for path in images["train"]["image_file_path"]] == NAMES
    assert [entry["path"] for entry in images.skipped] == ["i.jp2", "j.ppm"]


def test_split_folders_without_classes(put):
    images = load_images(put("train/1.png", "train/2.png", "test/3.png"))
    assert {name: len(split) for name, split in images.items()} == {"train": 2, "test": 1}
    assert "labels" not in images["train"].column_names


def test_class_folders_without_splits(put):
    images = load_images(put("b/2.png", "a/1.jpg", "b/deeper/3.webp", "b/deeper/still/4.png"))
    assert list(images) == ["train"] and images["train"]["labels"] == [0, 1, 1, 1]
    assert images["train"].features["labels"] == ClassLabel(names=["a", "b"])


def test_a_flat_folder_has_no_labels(put):
    images = load_images(put("1.png", "2.JPG", "3.bmp", "4.tif", "5.gif"))
    assert list(images) == ["train"] and len(images["train"]) == 5
    assert images["train"].column_names == ["image_file_path", "image"]


@pytest.mark.parametrize("where", ["", "leaf/", "train/leaf/"])
def test_files_called_train_or_test_drop_no_others(where, put):
    names = ["train_1.png", "my-test.png", "leaf.png", "validation.png", "attest.png"]
    images = load_images(put(*(where + name for name in names)))
    paths = images["train"]["image_file_path"]
    assert list(images) == ["train"] and sorted(Path(path).name for path in paths) == sorted(names)


def test_hidden_and_other_files_are_passed_over(put):
    folder = put("a/1.png", "a/.2.png", ".cache/3.png", "b/4.png")
    (folder / "b" / "notes.txt").write_text("notes")
    images = load_images(folder)
    assert [Path(path).name for path in images["train"]["image_file_path"]] == ["1.png", "4.png"]


@pytest.mark.parametrize(
    "names",
    [
        ["photos/1.png", "photos/2.png"],
        ["a/b/c/1.png"],
        ["2023/1.png", "2024/2.png"],
        ["2023/05/1.png", "2023/06/2.png", "2024-05-01/3.png", "20240502/4.png"],
        ["train/photos/1.png", "test/photos/2.png"],
        ["1.png", "cats/2.png"],
    ],
)
def test_what_is_no_class_makes_no_labels(names, put):
    images = load_images(put(*names))
    assert all("labels" not in split.column_names for split in images.values())
    assert sum(map(len, images.values())) == len(names) and not images.skipped


@pytest.mark.parametrize("names", [["1994 Golf", "2003 Golf"], ["0", "1"], ["2024", "x"], ["1234", "5678"]])
def test_numbers_in_names_do_not_make_dates(names, put):
    assert load_images(put(*(f"{name}/image.png" for name in names)))["train"]["labels"] == [0, 1]


@pytest.mark.parametrize("around", ["flowers/", "some/archive/flowers/"])
def test_a_folder_around_everything_says_nothing(around, put):
    images = load_images(put(*(f"{around}{name}" for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png"))))
    assert list(images) == ["train", "test"] and images["train"]["labels"] == [0, 1] and images["test"]["labels"] == [0]


def test_an_image_beside_the_class_folders_is_named(put, capsys):
    images = load_images(put("a/1.png", "b/2.png", "cover.png", "back.png"))
    assert len(images["train"]) == 4 and "labels" not in images["train"].column_names
    assert "'back.png' and 1 more lie beside" in capsys.readouterr().out


def test_what_lies_outside_the_splits_is_left_out_and_listed(put, capsys):
    images = load_images(put("train/1.png", "test/2.png", "other/3.png", "4.png"))
    assert {name: len(split) for name, split in images.items()} == {"train": 1, "test": 1}
    assert {entry["path"] for entry in images.skipped} == {"other/3.png", "4.png"}
    assert "Left out 2 of 4" in capsys.readouterr().out


def test_one_split_of_a_folder(put, refused):
    folder = put("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    images = load_images(f"{folder}?split=val")
    assert list(images) == ["validation"] and images["validation"]["labels"] == [0, 1]
    assert list(load_images(f"{folder}?split=validation")) == ["validation"]
    with refused("'test', only train, validation"):
        load_images(f"{folder}?split=test")
    with refused("no columns"):
        load_images(f"{folder}?label=species")


def test_a_folder_may_have_a_question_mark_in_its_name(tmp_path, draw):
    (tmp_path / "why?split=train").mkdir()
    draw(0).save(tmp_path / "why?split=train" / "1.png")
    assert len(load_images(tmp_path / "why?split=train")["train"]) == 1


def test_links_are_followed_but_not_in_circles(put, tmp_path, draw):
    folder = put("a/1.png", "b/2.png")
    (tmp_path / "far").mkdir()
    draw(3).save(tmp_path / "far" / "3.png")
    (folder / "c").symlink_to(tmp_path / "far")
    (folder / "a" / "up").symlink_to(folder)
    (tmp_path / "far" / "back").symlink_to(folder / "b")
    (folder / "b" / "over").symlink_to(tmp_path / "far")
    images = load_images(folder)["train"]
    names = [str(Path(path).relative_to(folder)) for path in images["image_file_path"]]
    assert names == ["a/1.png", "b/2.png", "b/over/3.png", "c/3.png", "c/back/2.png"]
    assert images["labels"] == [0, 1, 1, 2, 2]


def test_a_folder_that_cannot_be_read_is_listed(put, monkeypatch):
    folder = put("a/1.png", "b/2.png", "locked/3.png")
    scandir, read_bytes = os.scandir, Path.read_bytes

    def locked(function):
        def guarded(path):
            if Path(path).name == "locked":
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return guarded

    monkeypatch.setattr(os, "scandir", locked(scandir))
    monkeypatch.setattr(Path, "read_bytes", locked(read_bytes))
    assert load_images(folder).skipped == [{"path": "locked", "reason": "Permission denied"}]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_listed(put):
    folder = put("a/1.png", "b/2.png")
    (folder / "a" / "1.png").chmod(0)
    assert load_images(folder).skipped == [{"path": "a/1.png", "reason": "Permission denied"}]


def test_a_file_is_decoded_again_only_where_it_has_changed(put, monkeypatch, draw):
    folder, checked = put("a/1.png", "a/2.png", "b/3.png", "b/4.png"), []
    (folder / "b" / "4.png").write_bytes(b"broken")

    def note(path):
        checked.append(path.name)
        return why_unreadable(path)

    monkeypatch.setattr("imgsim.sources.decode.why_unreadable", note)
    for expected in (["1.png", "2.png", "3.png", "4.png"], ["4.png"]):  # what was broken may have been mended
        checked.clear()
        assert len(load_images(folder)["train"]) == 3 and sorted(checked) == expected
    draw(9).save(folder / "b" / "4.png")
    (folder / "a" / "1.png").write_bytes((folder / "a" / "2.png").read_bytes()[:-99])
    checked.clear()
    assert [entry["path"] for entry in load_images(folder).skipped] == ["a/1.png"]
    assert sorted(checked) == ["1.png", "4.png"]


@pytest.mark.parametrize(
    "content", ["[1, 2]", "[[1]]", "[" * 100_000, '{"a": 1}', "\0"], ids=lambda content: content[:6]
)
def test_what_was_found_whole_is_not_believed_from_a_damaged_note(content, put, tmp_path, monkeypatch):
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path / "cache"))
    folder = put("a/1.png", "b/2.png")
    load_images(folder)
    (note,) = (tmp_path / "cache" / "readable").iterdir()
    note.write_text(content)
    assert len(load_images(folder)["train"]) == 2


def test_a_file_that_vanishes_after_loading_is_one_sentence(put, encoder, refused):
    folder = put("a/1.png", "b/2.png")
    images = load_images(folder)["train"]
    (folder / "a" / "1.png").unlink()
    for use in (fingerprint, encoder.embed):
        with refused("1.png cannot be read as an image: No such file"):
            use(images)


def test_a_file_that_breaks_after_loading_is_one_sentence(put, encoder, refused):
    folder = put("a/1.png", "b/2.png")
    images = load_images(folder)["train"]
    (folder / "a" / "1.png").write_bytes(b"text")
    with refused("1.png cannot be read as an image"):
        encoder.embed(images)


@pytest.mark.parametrize("content", [b"", b"text", "half"], ids=["empty", "text", "truncated"])
def test_a_broken_file_is_skipped_and_named(content, put, capsys):
    folder = put("a/1.png", "a/2.jpg", "b/3.png")
    broken = folder / "a" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:-300] if content == "half" else content)
    images = load_images(folder)["train"]
    printed = capsys.readouterr().out
    assert "1 of 3" in printed and str(Path("a", "2.jpg")) in printed and "3.png" not in printed
    assert images["labels"] == [0, 1]
    assert [image.size for image in images["image"]] == [(40, 30)] * 2


def test_a_good_folder_is_read_without_a_word(put, capsys):
    load_images(put("a/1.png", "b/2.jpg"))
    assert capsys.readouterr().out == ""


def test_a_missing_folder_is_refused(tmp_path, refused):
    with refused(tmp_path / "nowhere"):
        load_images(tmp_path / "nowhere")


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"notes"}, {"a.png": b"", "b.jpg": b"text"}])
def test_a_folder_without_images_is_refused(files, tmp_path, refused):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with refused(tmp_path):
        load_images(tmp_path)


def test_the_built_in_leaves_are_drawn_once(monkeypatch, tmp_path):
    drawn = []

    def draw_few(folder):
        drawn.append(folder)
        return render_folder(folder, sizes={"train": 3, "test": 3}, size=32)

    render_folder = leaves.render_folder
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(leaves, "render_folder", draw_few)
    monkeypatch.setattr(leaves, "SPLITS", {"train": 3, "test": 3})
    first, second = load_images(), load_images("builtin")
    assert len(drawn) == 1 and drawn[0].parent == tmp_path
    assert first["train"]["image_file_path"] == second["train"]["image_file_path"]
    assert first["test"].features["labels"].names == list(leaves.CLASSES)


def rows(**sizes):
    """A dataset of these splits, each row saying where it comes from."""
    return DatasetDict(
        {name: Dataset.from_dict({"at": [f"{name} {i}" for i in range(n)]}) for name, n in sizes.items()}
    )


@pytest.mark.parametrize(
    ("splits", "candidates", "queries"),
    [
        (["train", "validation", "test"], "train", "test"),
        (["train", "test"], "train", "test"),
        (["train", "validation"], "train", "validation"),
        (["validation", "test"], "validation", "test"),
    ],
)
def test_candidates_and_queries_of_published_splits(splits, candidates, queries):
    found = candidates_and_queries(rows(**dict.fromkeys(splits, 3)))
    assert [split["at"] for split in found] == [[f"{name} {i}" for i in range(3)] for name in (candidates, queries)]


@pytest.mark.parametrize("split", ["train", "validation", "test", "everything"])
@pytest.mark.parametrize(("n", "held_out"), [(2, 1), (19, 1), (25, 2), (100, 10)])
def test_a_tenth_of_an_only_split_is_held_out(split, n, held_out):
    images = rows(**{split: n})
    candidates, queries = candidates_and_queries(images, seed=3)
    assert len(queries) == held_out
    assert sorted([*candidates["at"], *queries["at"]]) == sorted(images[split]["at"])
    assert candidates_and_queries(images, seed=3)[1]["at"] == queries["at"]


def test_another_seed_holds_out_another_tenth():
    held_out = [candidates_and_queries(rows(train=100), seed)[1]["at"] for seed in (0, 1)]
    assert held_out[0] != held_out[1]


def test_one_image_is_too_few_to_search(refused):
    with refused("1"):
        candidates_and_queries(rows(train=1))


def byte_backed(contents):
    return Dataset.from_dict(
        {"image": [{"bytes": one, "path": None} for one in contents]}, Features({"image": Image()})
    )


def test_the_fingerprint_is_that_of_the_bytes_in_their_order(images):
    content = [Path(path).read_bytes() for path in images["test"]["image_file_path"]]
    original = fingerprint(images["test"])
    assert fingerprint(byte_backed(content)) == original  # wherever they lie
    assert fingerprint(byte_backed([content[0] + b"\0", *content[1:]])) != original
    assert fingerprint(byte_backed(content[::-1])) != original
    assert fingerprint(byte_backed(content[:-1])) != original
    assert fingerprint(images["test"].select(range(8, -1, -1))) == fingerprint(byte_backed(content[::-1]))


def test_the_fingerprint_knows_where_an_image_ends():
    assert fingerprint(byte_backed([b"ab", b"c"])) != fingerprint(byte_backed([b"a", b"bc"]))


FORMATS = {
    "transform": lambda split: split.with_transform(lambda rows: {"pixels": [0 for _ in rows["image"]]}),
    "some columns": lambda split: split.with_format("torch", columns=["labels"]),
    "arrow": lambda split: split.with_format("arrow"),
    "numpy": lambda split: split.with_format("numpy"),
    "label": lambda split: split.rename_column("labels", "label"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_split_is_read_as_it_is_stored_whatever_its_format(name, images, encoder):
    split = FORMATS[name](images["test"])
    assert fingerprint(split) == fingerprint(images["test"])
    assert labels_of(split).tolist() == labels_of(images["test"]).tolist()
    assert (encoder.embed(split) == encoder.embed(images["test"])).all()


def test_a_split_without_images_is_one_sentence(images, encoder, refused):
    with refused("no column 'image', only img"):
        encoder.embed(images["test"].select_columns("image").rename_column("image", "img"))
    with refused("no image"):
        encoder.embed(Dataset.from_dict({"image": [None]}, Features({"image": Image()})))


def test_labels_of_a_split(images, put):
    assert labels_of(images["validation"]).tolist() == [0, 0, 1, 1, 2, 2]
    assert labels_of(load_images(put("1.png"))["train"]) is None


def test_the_real_beans(real):
    beans = load_images(real / "beans")
    assert {name: len(split) for name, split in beans.items()} == leaves.SPLITS
    assert beans["test"].features["labels"].names == list(leaves.CLASSES)


def test_a_class_that_unicode_spells_in_two_ways_is_one(tmp_path, draw):
    for number, name in enumerate(("caf\u00e9", "cafe\u0301", "tea")):
        (tmp_path / name).mkdir()
        draw(number).save(tmp_path / name / "1.png")
    images = load_images(tmp_path)["train"]
    assert images.features["labels"].names == ["caf\u00e9", "tea"] and sorted(images["labels"]) == [0, 0, 1]
