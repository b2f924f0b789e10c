"""Opening one image of any kind, reading image folders and Hub data sets, choosing candidates and queries."""

import io
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from imgsim import candidates_and_queries, leaves, load_images, open_image
from imgsim.images import fingerprint, labels_of

CORNER = (slice(0, 4), slice(0, 8))  # the marked corner of a test image, 16 x 8 pixels


def marked(mode, mark, ground):
    """An image of 16 x 8 pixels whose upper left quarter has another colour."""
    image = PIL.Image.new(mode, (16, 8), ground)
    image.paste(mark, (0, 0, 8, 4))
    return image


def see_through():
    image = marked("P", 1, 0)
    image.putpalette([250, 0, 0, 0, 100, 200])
    image.info["transparency"] = 0
    return image


KINDS = {  # the image, what a viewer shows in its corner and elsewhere
    "RGB": (marked("RGB", (1, 2, 3), (200, 100, 50)), (1, 2, 3), (200, 100, 50)),
    "grey": (marked("L", 7, 99), (7,) * 3, (99,) * 3),
    "black and white": (marked("1", 0, 1), (0,) * 3, (255,) * 3),
    "16 bits": (PIL.Image.fromarray(np.array(marked("L", 7, 99), np.uint16) * 257), (7,) * 3, (99,) * 3),
    "palette with transparency": (see_through(), (0, 100, 200), (255,) * 3),
    "RGBA": (marked("RGBA", (9, 8, 7, 255), (0, 0, 0, 0)), (9, 8, 7), (255,) * 3),
    "half transparent": (marked("RGBA", (0, 0, 0, 255), (255, 0, 0, 51)), (0,) * 3, (255, 204, 204)),
    "grey with transparency": (marked("LA", (40, 255), (40, 0)), (40,) * 3, (255,) * 3),
    "CMYK": (marked("CMYK", (0, 0, 0, 255), (0, 255, 255, 0)), (0,) * 3, (255, 0, 0)),
}


def looks_like(image, corner, ground, tolerance=1):
    """Whether an opened image is RGB, 16 x 8 and shows these colours; tolerance 1: blending rounds."""
    pixels = np.asarray(image).astype(int)
    expected = np.empty((8, 16, 3), int)
    expected[:], expected[CORNER] = ground, corner
    return image.mode == "RGB" and pixels.shape == (8, 16, 3) and np.abs(pixels - expected).max() <= tolerance


def contents(image, **options):
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["PIL", "path", "str", "bytes", "dict of bytes", "dict of a path"])
def test_an_image_is_opened_as_a_viewer_shows_it(kind, source, tmp_path):
    image, corner, ground = KINDS[kind]
    form = "TIFF" if kind == "CMYK" else "PNG"
    path, content = tmp_path / "image", contents(image, format=form)
    path.write_bytes(content)
    sources = {"PIL": image, "path": path, "str": str(path), "bytes": content}
    sources["dict of bytes"] = {"bytes": content, "path": "elsewhere.png"}
    sources["dict of a path"] = {"bytes": None, "path": str(path)}
    assert looks_like(open_image(sources[source]), corner, ground)


@pytest.mark.parametrize("kind", ["RGB", "grey", "RGBA", "16 bits"])
def test_an_array_is_opened_as_its_image(kind):
    image, corner, ground = KINDS[kind]
    assert looks_like(open_image(np.asarray(image)), corner, ground)


def test_a_cmyk_jpeg_has_its_colours():
    image, corner, ground = KINDS["CMYK"]
    opened = open_image(contents(image, format="JPEG", quality=100))
    assert looks_like(opened, corner, ground, tolerance=12)  # JPEG is lossy at the corner's edges


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_turned_upright(orientation, form):
    image, corner, ground = KINDS["RGB"]
    turn = PIL.Image.Transpose
    undo = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
    undo += [turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]  # how a camera that was held so stores the image
    stored = image if orientation == 1 else image.transpose(undo[orientation - 1])
    exif = PIL.Image.Exif()
    exif[274] = orientation
    opened = open_image(contents(stored, format=form, exif=exif, **{"quality": 100} if form == "JPEG" else {}))
    assert looks_like(opened, corner, ground, tolerance=40 if form == "JPEG" else 0)  # JPEG's colours bleed at edges


def test_opening_a_pil_image_leaves_it_as_it_is():
    image = KINDS["RGBA"][0].copy()
    open_image(image)
    assert image == KINDS["RGBA"][0]


@pytest.mark.parametrize("content", [b"", b"only text\n", contents(KINDS["RGB"][0], format="PNG")[:60]])
def test_a_broken_file_is_refused_by_name(content, tmp_path, refused):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with refused(path):
        open_image(path)
    with refused(path):
        open_image({"bytes": None, "path": str(path)})
    with refused("image"):
        open_image(content)


def test_a_truncated_jpeg_is_refused(draw, tmp_path, refused):
    path = tmp_path / "half.jpg"
    path.write_bytes(contents(draw(0), format="JPEG")[:-200])
    with refused(path):
        open_image(path)


@pytest.mark.parametrize(
    "source",
    ["/no/such/file.jpg", np.full((4, 4, 3), 2.0), np.zeros((4, 4, 5), np.uint8), None, {"bytes": None, "path": None}],
    ids=["a missing file", "floats", "five channels", "None", "no content"],
)
def test_what_is_no_image_is_refused(source, refused):
    with refused():
        open_image(source)


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
    ],
)
def test_split_folders_go_by_several_names(names, splits, put):
    folder = put(*(f"{name}/{label}/{i}.png" for name in names for label in ("a", "b") for i in range(2)))
    images = load_images(str(folder))
    assert list(images) == splits and all(split["labels"] == [0, 0, 1, 1] for split in images.values())


def test_split_folders_without_classes(put):
    images = load_images(put("train/1.png", "train/2.png", "test/3.png"))
    assert {name: len(split) for name, split in images.items()} == {"train": 2, "test": 1}
    assert "labels" not in images["train"].column_names


def test_class_folders_without_splits(put):
    images = load_images(put("b/2.png", "a/1.jpg", "b/deeper/3.webp"))
    assert list(images) == ["train"] and images["train"]["labels"] == [0, 1, 1]
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
        return draw_folder(folder, sizes={"train": 3, "test": 3}, size=32)

    draw_folder = leaves.draw_folder
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(leaves, "draw_folder", draw_few)
    first, second = load_images(), load_images("builtin")
    assert len(drawn) == 1 and drawn[0].parent == tmp_path
    assert first["train"]["image_file_path"] == second["train"]["image_file_path"]
    assert first["test"].features["labels"].names == list(leaves.CLASSES)


@pytest.fixture
def from_hub(monkeypatch, tmp_path):
    """A function that makes a folder of one parquet file the snapshot of any Hub data set."""

    def publish(columns, features):
        (tmp_path / "snapshot").mkdir()
        Dataset.from_dict(columns, Features(features)).to_parquet(tmp_path / "snapshot" / "train.parquet")
        monkeypatch.setattr("imgsim.images.locate", lambda name, kind: tmp_path / "snapshot")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    return publish


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("picture", "labels")])
def test_a_hub_data_set_gets_the_columns_of_beans(image, label, from_hub, draw):
    content = [contents(draw(i), format="PNG") for i in range(3)]
    columns = {label: [1, 0, 1], image: [{"bytes": one, "path": None} for one in content]}
    from_hub(columns, {label: ClassLabel(names=["a", "b"]), image: Image()})
    loaded = load_images("somebody/something")["train"]
    assert set(loaded.column_names) == {"image", "labels"}
    assert loaded["labels"] == [1, 0, 1] and loaded.features["labels"].names == ["a", "b"]
    assert [one["bytes"] for one in loaded.cast_column("image", Image(decode=False))["image"]] == content


def test_a_hub_data_set_without_classes_has_no_labels(from_hub, draw):
    columns = {"image": [{"bytes": contents(draw(0), format="PNG"), "path": None}], "label": ["a caption"]}
    from_hub(columns, {"image": Image(), "label": Value("string")})
    assert "labels" not in load_images("somebody/something")["train"].column_names


def test_a_hub_data_set_without_images_is_refused(from_hub, refused):
    from_hub({"text": ["a"]}, {"text": Value("string")})
    with refused("somebody/something"):
        load_images("somebody/something")


def rows(**sizes):
    """A data set of these splits, each row saying where it comes from."""
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


def test_labels_of_a_split(images, put):
    assert labels_of(images["validation"]).tolist() == [0, 0, 1, 1, 2, 2]
    assert labels_of(load_images(put("1.png"))["train"]) is None


def test_the_real_beans(real):
    beans = load_images(real / "beans")
    assert {name: len(split) for name, split in beans.items()} == leaves.SPLITS
    assert beans["test"].features["labels"].names == list(leaves.CLASSES)
