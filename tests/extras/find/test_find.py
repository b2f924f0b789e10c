"""A folder, a photo, one command: what is embedded again, what is printed, and what is refused."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from imgsim import BuildLSHTable, open_image
from imgsim.extras.cli import main
from imgsim.extras.find import embedding, folder_index
from imgsim.extras.find.answers import plain_path, write_page
from imgsim.extras.find.files import content_id
from imgsim.extras.find.folder_index import FolderIndex, Match
from imgsim.extras.runs.checkpoint import GENERAL, ask_for_checkpoint
from imgsim.sources.folder import printable

HOSTILE = ["two\nlines.png", "a 'quote\".png", "$HOME `x`.png", "-dash.png", "=1+1.png", b"\xff\xfe.png", "ü.png"]
HOSTILE += ["n" * 246 + ".png", "<b>.png", "comma,tab\t.png"]


@pytest.fixture
def photos(tmp_path, draw, monkeypatch):
    """A folder of six photos, two of them below a subfolder, and a cache that is empty."""
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for i in range(6):
        draw(i).save(folder / ("deeper" if i > 3 else ".") / f"{i}.png")
    return folder


@pytest.fixture
def hostile(photos, draw):
    """The folder, with files whose names are hard to print; in bytes."""
    for i, name in enumerate(HOSTILE):
        path = os.fsencode(photos) + b"/" + os.fsencode(name)
        draw(100 + i).save(photos / "made.png")
        os.replace(photos / "made.png", path)
    return photos


def names(folder):
    """What the index of a folder holds."""
    return set(folder.index.keys)


def test_every_photo_finds_itself_and_cosines_are_exact(photos, checkpoint, encoder):
    kept = FolderIndex(photos, str(checkpoint))
    paths = sorted(photos.rglob("*.png"))
    vectors = encoder.embed(paths)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for path, vector, answer in zip(paths, vectors, kept.search(kept.embed(paths), 6), strict=True):
        assert next(match.path for match in answer) == str(path)
        expected = sorted(vectors @ vector, reverse=True)
        assert np.allclose([match.cosine for match in answer], expected, atol=1e-5)


def test_only_what_is_new_is_embedded(photos, checkpoint, draw, monkeypatch):
    assert FolderIndex(photos, str(checkpoint)).embedded == 6
    again = FolderIndex(photos)  # the checkpoint is remembered
    assert again.embedded == 0 and "encoder" not in vars(again)
    draw(50).save(photos / "new.png")
    draw(51).save(photos / "0.png")  # changed
    os.rename(photos / "1.png", photos / "renamed.png")
    os.rename(photos / "2.png", photos / "deeper" / "2.png")
    shutil.copy(photos / "3.png", photos / "copy.png")
    (photos / "deeper" / "4.png").unlink()
    now = FolderIndex(photos)
    assert now.embedded == 2
    expected = {"new.png", "0.png", "renamed.png", "deeper/2.png", "3.png", "copy.png", "deeper/5.png"}
    assert names(now) == expected and len(now.index) == 7
    monkeypatch.setenv("IMGSIM_CACHE", str(photos.parent / "other"))
    anew = FolderIndex(photos, str(checkpoint))
    order, other = np.argsort(now.index.ids), np.argsort(anew.index.ids)
    assert (anew.index.ids[other] == now.index.ids[order]).all()
    assert np.allclose(anew.index.vectors[other], now.index.vectors[order], atol=1e-5)


def test_what_changes_is_added_and_removed_not_built_again(photos, checkpoint, draw, monkeypatch):
    kept = FolderIndex(photos, str(checkpoint))
    built = []
    real = BuildLSHTable.build_from_embeddings
    spy = lambda self, *given, **named: built.append(1) or real(self, *given, **named)  # noqa: E731
    monkeypatch.setattr(BuildLSHTable, "build_from_embeddings", spy)
    os.rename(photos / "1.png", photos / "renamed.png")
    shutil.copy(photos / "0.png", photos / "copy.png")
    (photos / "2.png").unlink()
    monkeypatch.setattr(folder_index, "DRIFT", 10)
    now = FolderIndex(photos)
    assert not built and now.embedded == 0 and "encoder" not in vars(now)
    assert (now.index.projection.planes == kept.index.projection.planes).all()
    answer = now.search(now.embed([photos / "copy.png"]), 2)[0]
    assert {match.path for match in answer} == {str(photos / "0.png"), str(photos / "copy.png")}
    for i in range(20):  # enough for another bit per code
        draw(200 + i).save(photos / f"more{i}.png")
    more = FolderIndex(photos)
    assert built == [1] and more.embedded == 20 and more.index.hash_size == kept.index.hash_size + 1
    assert (np.sort(FolderIndex(photos).index.ids) == np.sort(more.index.ids)).all()
    monkeypatch.setattr(folder_index, "DRIFT", 0)  # any move of the mean counts
    (photos / "more3.png").unlink()
    assert len(FolderIndex(photos).index) == 25 and built == [1, 1]


def test_a_file_written_over_with_the_same_size_is_noticed(photos, checkpoint):
    FolderIndex(photos, str(checkpoint))
    path, stat = photos / "0.png", (photos / "0.png").stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    now = FolderIndex(photos)
    assert "0.png" not in names(now) and "0.png" in now.skipped


def test_another_checkpoint_has_another_index_and_changed_weights_count(photos, checkpoint, save_vit, tmp_path):
    changed = save_vit(tmp_path / "vit", seed=1)
    assert FolderIndex(photos, str(checkpoint)).embedded == FolderIndex(photos, str(changed)).embedded == 6
    assert FolderIndex(photos).checkpoint == str(changed)
    assert FolderIndex(photos, str(checkpoint)).embedded == 0
    assert FolderIndex(photos).checkpoint == str(checkpoint)
    save_vit(changed, seed=1)  # the same weights in new files
    assert FolderIndex(photos, str(changed)).embedded == 0
    save_vit(changed, seed=2)
    assert FolderIndex(photos, str(changed)).embedded == 6


def test_killed_work_goes_on_where_it_stopped(photos, checkpoint, monkeypatch):
    monkeypatch.setattr(embedding, "BATCH", 1)
    real, calls = embedding.keep_embeddings, []

    def killed(*arguments):
        real(*arguments)
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "keep_embeddings", killed)
    monkeypatch.setattr("imgsim.encoder.MICRO_BATCH", 2)
    with pytest.raises(KeyboardInterrupt):
        FolderIndex(photos, str(checkpoint))
    monkeypatch.setattr(embedding, "keep_embeddings", real)
    kept = FolderIndex(photos, str(checkpoint))
    assert kept.embedded == 6 - 2 * len(calls) and len(names(kept)) == 6
    assert not list(kept.place.glob("*.npz"))


@pytest.mark.parametrize(("damage", "embedded"), [("manifest.json", 0), ("index/manifest.json", 6)])
def test_a_damaged_index_is_built_again(damage, embedded, photos, checkpoint, capsys):
    place = FolderIndex(photos, str(checkpoint)).place
    (place / damage).write_text("{")
    again = FolderIndex(photos, str(checkpoint))
    assert again.embedded == embedded and len(again.index) == 6
    assert ("built again" in capsys.readouterr().err) == bool(embedded)
    assert FolderIndex(photos, str(checkpoint)).embedded == 0


def test_a_second_process_waits(photos, checkpoint, capsys):
    place = FolderIndex(photos, str(checkpoint)).place
    with FileLock(place / "lock"):
        command = [sys.executable, "-m", "imgsim", "find", str(photos / "0.png"), str(photos)]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert "waiting" in second.stderr.readline() and second.poll() is None
    out, _ = second.communicate()
    assert second.returncode == 0 and out.count("\n") == 6


def test_only_the_answer_is_on_stdout(photos, checkpoint, capsys):
    (photos / "broken.jpg").write_bytes(b"nothing")
    (photos / "notes").write_text("no image, and none was meant")
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    arguments = ["find", str(photos / "0.png"), str(photos / "deeper" / "5.png"), str(photos)]
    assert main([*arguments, "--checkpoint", str(checkpoint), "--top-k", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    answers = json.loads(out)
    assert [answer["query"] for answer in answers] == arguments[1:3]
    assert [answer["matches"][0]["path"] for answer in answers] == arguments[1:3]
    assert all(len(answer["matches"]) == 2 for answer in answers)
    assert "left out: broken.jpg (not recognised" in err and "notes" not in err
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before
    assert main([*arguments, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert not err and out.startswith(f"{arguments[1]}:\n 1.000  {arguments[1]}\n")
    assert main(["find", arguments[1], "--top-k", "1", str(photos), "--csv", "--quiet"]) == 0  # options in between
    assert list(csv.reader(io.StringIO(capsys.readouterr().out)))[1] == [arguments[1], "1", arguments[1], "1.000000"]


def test_many_skipped_files_are_counted_and_index_lists_them(photos, checkpoint, capsys):
    for i in range(7):
        (photos / f"broken{i}.jpg").write_bytes(b"nothing")
    assert main(["find", str(photos / "0.png"), str(photos), "--checkpoint", str(checkpoint)]) == 0
    err = capsys.readouterr().err
    assert err.count("left out:") == 3 and "and 4 more files" in err
    assert main(["index", str(photos)]) == 0
    out, err = capsys.readouterr()
    assert err.count("left out:") == 7
    assert len(BuildLSHTable.load(out.strip(), checkpoint)) == 6


def test_a_crop_counts_alone(photos, checkpoint, draw, capsys):
    both = draw(0).resize((80, 60)).convert("RGB")
    both.paste(draw(5).resize((40, 30)), (30, 20))
    both.save(photos.parent / "both.png")
    arguments = ["find", str(photos.parent / "both.png"), str(photos), "--checkpoint", str(checkpoint), "--paths"]
    assert main([*arguments, "--crop", "30,20,40,30", "--top-k", "1"]) == 0
    assert capsys.readouterr().out == f"{photos / 'deeper' / '5.png'}\n"
    assert main([*arguments, "--crop", "30,20,80,30"]) == 1
    assert "does not lie in 80 x 60 pixels" in capsys.readouterr().err


def test_hostile_names_are_in_every_output(hostile, checkpoint, monkeypatch, capfdbinary):
    monkeypatch.chdir(hostile)
    expected = {os.path.normpath(name) for name in names(FolderIndex(".", str(checkpoint)))}
    assert {os.fsdecode(name) for name in HOSTILE} < expected

    def ask(*options):
        assert main(["find", "--top-k", "50", *options, "--", "-dash.png", "."]) == 0
        return capfdbinary.readouterr().out

    paths = [os.fsdecode(path) for path in ask("--paths", "-0").split(b"\0")[:-1]]
    assert {os.path.normpath(path) for path in paths} == expected and all(map(os.path.exists, paths))
    (answer,) = json.loads(ask("--json"))
    assert [match["path"] for match in answer["matches"]] == paths and paths[0] == "./-dash.png"
    table = list(csv.reader(io.StringIO(os.fsdecode(ask("--csv")), newline="")))
    assert [row[2] for row in table[1:]] == paths
    assert not any(cell[:1] in tuple("=+-@") for row in table for cell in row)
    assert ask().count(b"\n") == len(paths)  # a line for each


def test_the_page_holds_hostile_names_as_text(hostile, checkpoint, tmp_path):
    kept = FolderIndex(hostile, str(checkpoint))
    matches = [Match(kept.path(key), 0.5) for key in kept.index.keys]
    write_page([("text: <i>", matches)], str(hostile), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<b>.png" not in page and "&lt;b&gt;.png" in page and "<i>" not in page
    assert page.count('<a href="file:///') == len(matches) and "%FF%FE.png" in page


@pytest.mark.parametrize(
    ("path", "plain"), [("-x.jpg", "./-x.jpg"), ("=1.jpg", "./=1.jpg"), ("a-b", "a-b"), ("/=", "/=")]
)
def test_no_path_is_an_option_or_a_formula(path, plain):
    assert plain_path(path) == plain


def test_what_a_terminal_cannot_show_is_escaped():
    assert printable("grün $x") == "grün $x" and printable("a\nb\udcff") == r"'a\nb\udcff'"


def test_words_find_images_where_the_encoder_is_dual(photos, capsys):
    assert main(["find", "--text", "a healthy leaf", str(photos), "--csv"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("query,rank,path,cosine\ntext: a healthy leaf,1,") and out.count("\n") == 7
    assert "only rendered leaves" in err and "laion/CLIP" in err


@pytest.mark.parametrize(
    ("terminal", "answer", "hub", "expected"),
    [
        (False, "y", True, "builtin"),
        (True, "\n", True, GENERAL),
        (True, "n\n", True, "builtin"),
        (True, "y\n", False, "builtin"),
    ],
)
def test_the_checkpoint_for_photos_is_asked_for(terminal, answer, hub, expected, monkeypatch, capsys):
    def locate(name, kind):
        if not hub:
            raise ConnectionError("the Hub cannot be reached")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr("imgsim.extras.runs.checkpoint.locate", locate)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    assert ask_for_checkpoint() == expected
    said = capsys.readouterr().err
    assert ("88 MB" in said) == terminal and ("cannot be reached" in said) == (not hub)


def test_a_checkpoint_that_is_here_is_taken_without_a_question(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: "/cache/model.safetensors")
    assert ask_for_checkpoint() == GENERAL


@pytest.mark.parametrize(
    ("arguments", "code", "naming"),
    [
        (["PHOTO"], 2, "besides the FOLDER"),
        (["PHOTO", "FOLDER", "--top"], 2, "unrecognized"),
        (["PHOTO", "FOLDER", "--crop", "1,2,3"], 2, "four whole numbers, not '1,2,3'"),
        (["PHOTO", "FOLDER", "--crop", "1,2,-3,4"], 2, "four whole numbers"),
        (["PHOTO", "FOLDER", "--text", " "], 2, "no words"),
        (["PHOTO", "FOLDER", "-0"], 2, "only --paths"),
        (["PHOTO", "FOLDER", "--json", "--csv"], 2, "not allowed"),
        (["PHOTO", "FOLDER", "--top-k", "0"], 1, "top_k"),
        (["https://example.org/a.jpg", "FOLDER"], 1, "is an address"),
        (["FOLDER", "PHOTO"], 1, "no folder"),
        (["nowhere.jpg", "FOLDER"], 1, "nowhere.jpg"),
        (["PHOTO", "EMPTY"], 1, "no image that can be read"),
        (["PHOTO", "FOLDER", "--text", "words"], 1, "no text side"),
        (["PHOTO", "FOLDER", "--checkpoint", "nowhere/at/all"], 1, "nowhere"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(arguments, code, naming, photos, checkpoint, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"PHOTO": str(photos / "0.png"), "FOLDER": str(photos), "EMPTY": str(tmp_path / "empty")}
    command = ["find", *(places.get(argument, argument) for argument in arguments), "--quiet"]
    command += [] if "--checkpoint" in command else ["--checkpoint", str(checkpoint)]
    try:
        assert main(command) == code
    except SystemExit as stopped:
        assert stopped.code == code
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and naming in err and err.count("\n") == 1


def test_a_photo_is_looked_at_before_the_folder(photos, checkpoint, tmp_path):
    assert main(["find", "nowhere.jpg", str(photos), "--checkpoint", str(checkpoint)]) == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("options", [["--text", "words"], ["--crop", "0,0,9999,1"]])
def test_what_can_only_fail_is_refused_before_the_folder_is_embedded(options, photos, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(FolderIndex, "_update", lambda self: pytest.fail("the folder was looked at"))
    arguments = ["find", str(photos / "0.png"), str(photos), "--checkpoint", str(checkpoint), *options]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("known", "spared"),
    [
        (True, {"torch", "transformers", "datasets", "pandas", "matplotlib"}),
        (False, {"datasets", "pandas", "matplotlib"}),
    ],
)
def test_a_search_loads_no_library_that_it_does_not_need(known, spared, photos, checkpoint, draw, tmp_path):
    FolderIndex(photos, str(checkpoint))
    draw(99).save(tmp_path / "other.png")
    photo = photos / "0.png" if known else tmp_path / "other.png"
    code = f"""
import sys
from imgsim.extras.cli import main
assert main(["find", {str(photo)!r}, {str(photos)!r}]) == 0
assert not {spared} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_ids_are_of_contents(photos):
    content = (photos / "0.png").read_bytes()
    assert content_id(content) == content_id(bytes(content)) != content_id(content + b" ")
    assert 0 <= content_id(content) < 2**63


def test_every_real_photo_finds_itself(real, tmp_path, monkeypatch):
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path))
    shutil.copytree(real / "beans" / "test", tmp_path / "photos")
    kept = FolderIndex(tmp_path / "photos", str(real / "mobilenet-v1-025"))
    paths = [str(path) for path in sorted((tmp_path / "photos").rglob("*.jpg"))]
    answers = kept.search(kept.embed(paths), 1)
    assert [matches[0].path for matches in answers] == paths and len(paths) == 128
    fresh = kept.encoder.embed([open_image(Path(path)) for path in paths[:5]])
    assert [matches[0].path for matches in kept.search(fresh, 1)] == paths[:5]


@pytest.mark.parametrize("command", ["find", "index"])
def test_a_closed_output_ends_with_a_sentence(command, photos, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    photo = [str(photos / "1.png")] if command == "find" else []
    assert main([command, *photo, str(photos), "--checkpoint", str(checkpoint)]) == 1
    assert "output is closed" in capsys.readouterr().err
