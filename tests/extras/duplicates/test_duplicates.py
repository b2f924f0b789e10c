"""Near-duplicates: pairs against an oracle, the threshold's calibration, what to keep, the command's files."""

import csv
import json
import re
import shutil
from itertools import combinations

import numpy as np
import pytest
from datasets import concatenate_datasets

from imgsim import BuildLSHTable, load_images
from imgsim.extras.cli import main
from imgsim.extras.duplicates.alterations import ALTERATIONS, EVERYDAY, alter
from imgsim.extras.duplicates.pairs import Calibration, calibrate, find_duplicates, index_for_duplicates
from imgsim.extras.duplicates.report import embed_dataset, report_duplicates
from imgsim.hashing import normalise
from imgsim.sources.decode import open_image


class Pixels:
    """An encoder that compares by pixels: brightness and small crops change little, mirrors a lot."""

    dim, digest = 192, "pixels"

    def embed(self, images, batch_size=48):
        rows = [np.asarray(open_image(image).resize((8, 8)), np.float32).ravel() for image in images]
        return np.stack(rows) - 128

    def describe(self):
        return {"name": "pixels", "digest": self.digest, "pooling": "rows", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw):
    """Forty pictures of noise; of every fourth a smaller copy, and a JPEG of the first copy."""
    folder = tmp_path_factory.mktemp("duplicates")
    for i in range(40):
        draw(i).resize((160, 120)).save(folder / f"{i:02}.png")
        if i % 4 == 0:
            draw(i).resize((80, 60)).save(folder / f"{i:02}-small.png")
    draw(0).resize((80, 60)).save(folder / "00-small.jpg", quality=90)
    return folder


def clusters(seed=0):
    """Unit rows (600, 64): a hundred that nobody is near, and a hundred groups of five near one another."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((100, 64)), 5, axis=0)
    return normalise(np.vstack([rng.standard_normal((100, 64)), centres + 0.1 * rng.standard_normal((500, 64))]))


def test_pairs_and_groups_are_those_of_comparing_everything():
    points = clusters()
    ids = np.random.default_rng(1).permutation(10_000)[: len(points)]  # ids need not be rows
    index = BuildLSHTable(hash_size=8, num_tables=16, rerank=50).build_from_embeddings(points, ids=ids)
    found = find_duplicates(index, 0.95)
    near = np.triu(points @ points.T >= 0.95, 1)
    expected = {tuple(sorted((ids[a], ids[b]))) for a, b in np.argwhere(near)}
    assert set(map(tuple, found.pairs.tolist())) == expected and len(expected) > 900
    assert len(found.groups) == 100 and {len(group) for group in found.groups} == {5}
    row = {id_: row for row, id_ in enumerate(ids)}
    exact = [points[row[a]] @ points[row[b]] for a, b in found.pairs.tolist()]
    assert np.allclose(found.cosines, exact, atol=1e-6)
    assert len(found.pairs) <= found.compared <= len(points) * 50
    nothing = find_duplicates(BuildLSHTable(hash_size=1, rerank=50).build_from_embeddings(points[:12]), 1)
    assert nothing.compared == 12 * 11 / 2  # each pair once


def test_a_chain_is_one_group_and_nothing_near_gives_none():
    angles = np.radians([0, 10, 20, 90, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    index = BuildLSHTable(hash_size=1, num_tables=8).build_from_embeddings(points)
    assert find_duplicates(index, np.cos(np.radians(11))).groups == [[0, 1, 2]]
    nothing = find_duplicates(index, 0.999)
    assert nothing.groups == [] and nothing.pairs.shape == (0, 2) and len(nothing.cosines) == 0


def test_many_copies_of_one_image_are_one_group():
    points = np.vstack([np.ones((300, 8)), -np.ones((1, 8)), np.eye(8)])
    assert find_duplicates(index_for_duplicates(None, points), 0.99).groups == [list(range(300))]


def test_threshold_must_be_a_cosine(refused):
    with refused(1.5):
        find_duplicates(BuildLSHTable().build_from_embeddings(np.eye(3)), 1.5)


@pytest.mark.parametrize("kind", ALTERATIONS)
@pytest.mark.parametrize("size", [(40, 30), (1, 1)])
def test_alterations_change_the_image_and_leave_the_original(kind, size, draw):
    original = draw(0).resize(size)
    before = original.tobytes()
    altered = alter(original, kind)
    assert altered.mode == "RGB" and original.tobytes() == before
    assert size == (1, 1) or (altered.size, altered.tobytes()) != (size, before)


def test_threshold_lies_between_copies_and_others():
    copies, others = np.array([0.95, 0.96, 0.97, 0.98]), np.array([0.8, 0.85, 0.9])
    calibration = Calibration(copies, others, others, 10)
    assert 0.9 < calibration.threshold <= 0.95
    assert calibration.recall(0.965) == 0.5
    assert calibration.precision(0.9) < calibration.precision(0.91) == 1
    # by hand: of n images a fifth has a copy, all found; one in ten meets a wrong one, one in four of the copies too
    assert calibration.precision(0.86) == pytest.approx(0.2 / (0.2 + 0.1 / 2 + (0.2 + 0.2**2 / 2) / 4))


def test_a_copy_that_the_tables_miss_counts_as_lost():
    calibration = Calibration(np.array([np.nan, 0.99]), np.empty(0), np.empty(0), 1)
    assert calibration.recall(0.5) == 0.5 and calibration.precision(0.5) == 1


def test_calibration_is_not_misled_by_copies_that_are_there_already(folder):
    images, encoder = concatenate_datasets(list(load_images(folder).values())), Pixels()
    calibration = calibrate(index_for_duplicates(encoder, encoder.embed(images["image"])), images)
    threshold, by_kind = calibration.threshold, calibration.cosines.reshape(len(images), len(EVERYDAY))
    assert calibration.precision(threshold) > 0.9 and (by_kind[:, EVERYDAY.index("half size")] >= threshold).all()
    again = calibrate(index_for_duplicates(encoder, encoder.embed(images["image"])), images)
    assert again.threshold == threshold


def test_command_groups_copies_and_keeps_the_best(folder, checkpoint, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    output = tmp_path / "out"
    options = ["duplicates", str(folder), "--checkpoint", str(checkpoint), "--threshold", "0.999"]
    assert main([*options, "--output", str(output)]) == 0
    assert "Nothing was deleted." in capsys.readouterr().out
    with open(output / "duplicates.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["group", "path", "keep", "cosine", "identical"]
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for group in groups.values():
        assert [row["keep"] for row in group] == ["yes"] + ["no"] * (len(group) - 1)
        assert group[0]["cosine"] == "1.0000" and group[0]["path"].endswith(".png") and "small" not in group[0]["path"]
    names = sorted(sorted(row["path"].rpartition("/")[2] for row in group) for group in groups.values())
    assert ["00-small.jpg", "00-small.png", "00.png"] in names and len(names) == 10
    page = (output / "report.html").read_text()
    assert page.count("<section>") == 10 and page.count("<b>keep</b>") == 10
    assert not re.search(r"(src|href)=.?(http|/)", page)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_identical_files_are_told_apart_from_copies_that_look_alike(folder, checkpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("00.png", "00-small.png", "01.png"):
        shutil.copy(folder / name, photos / name)
    shutil.copy(photos / "00.png", photos / "again.png")
    options = ["duplicates", str(photos), "--checkpoint", str(checkpoint), "--threshold", "0.99"]
    assert main([*options, "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "duplicates.json").read_text())
    (group,) = content["groups"]
    told = [(member["path"].rpartition("/")[2], member["keep"], member["identical"]) for member in group]
    assert told == [("00.png", True, False), ("again.png", False, True), ("00-small.png", False, False)]
    assert group[1]["cosine"] == pytest.approx(1) and group[2]["width"] == 80
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f'href="{path.as_uri()}"' in page for path in photos.iterdir() if path.name != "01.png")
    assert "byte by byte: 1." in page and re.search("Compared: [3-6] of 6 pairs", page)


@pytest.mark.parametrize("there", [["report.html"], ["duplicates.csv", "notes.txt"], ["run.json"]])
def test_what_is_not_its_own_is_never_overwritten(there, folder, checkpoint, tmp_path, capsys):
    for name in there:
        (tmp_path / name).write_text("mine")
    options = ["duplicates", str(folder), "--checkpoint", str(checkpoint), "--threshold", "0.9"]
    assert main([*options, "--output", str(tmp_path)]) == 1
    assert "holds other files" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(there, "mine")


@pytest.mark.parametrize("output", ["file", "file/deeper"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_embedded(output, folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"):
        report_duplicates(str(folder), lambda: pytest.fail("it was loaded"), output=tmp_path / output)


def test_names_cannot_break_the_page(draw, checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("<b onclick=x>.png", 'a"b,c.png', "=1+1.png"):
        draw(0).save(tmp_path / "photos" / name)
    options = ["duplicates", str(tmp_path / "photos"), "--checkpoint", str(checkpoint), "--threshold", "0.99"]
    assert main([*options, "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b onclick" not in page and "&lt;b onclick=x&gt;.png" in page and 'a"b' not in page
    with open(tmp_path / "out" / "duplicates.csv", newline="") as stream:
        assert {row["path"].rpartition("/")[2] for row in csv.DictReader(stream)} >= {'a"b,c.png'}


def test_builtin_checkpoint_says_that_it_is_the_wrong_tool(draw, tmp_path, capsys):
    for i in range(15):
        draw(i).save(tmp_path / f"{i}.png")
    assert main(["duplicates", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: The built-in checkpoint") and "--checkpoint facebook/dinov2-small" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "naming"),
    [(["nowhere/at/all"], "nowhere"), (["FOLDER", "--threshold", "2"], "2.0"), (["ONE"], "two images")],
)
def test_command_refuses_in_one_sentence(options, naming, folder, draw, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    draw(0).save(tmp_path / "one" / "a.png")
    places = {"FOLDER": str(folder), "ONE": str(tmp_path / "one")}
    assert main(["duplicates", *(places.get(option, option) for option in options)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and naming in said


def test_real_checkpoint_finds_real_copies_at_its_default_threshold(real, tmp_path):
    """A part of 07_near_duplicates' measurement: 60 photographs of 300 have a copy."""
    paths = sorted((real / "beans" / "train").rglob("*.jpg"))[::3][:300]
    for i, path in enumerate(paths):
        (tmp_path / path.name).symlink_to(path)
        if i % 5 == 0:
            alter(open_image(path), EVERYDAY[i // 5 % 5]).save(tmp_path / f"{path.stem}-copy.jpg", quality=95)
    images, paths, encoder, embeddings = embed_dataset(str(tmp_path), str(real / "mobilenet-v1-025"))
    index = index_for_duplicates(encoder, embeddings)
    threshold = calibrate(index, images, sample=40).threshold
    found = find_duplicates(index, threshold)
    names = [path.rpartition("/")[2].removesuffix(".jpg") for path in paths]
    right = [names[a].removesuffix("-copy") == names[b].removesuffix("-copy") for a, b in found.pairs]
    assert sum(right) >= 0.85 * 60 and np.mean(right) >= 0.85
    assert found.compared < 0.5 * len(list(combinations(range(len(images)), 2)))
