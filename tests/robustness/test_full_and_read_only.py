"""A full disk and places that cannot be written to: one sentence, nothing half-written; caches are done without."""

import errno
import os
import subprocess

import numpy as np
import pytest

from imgsim import BuildLSHTable, load_images
from imgsim.extras.cli import main
from imgsim.sources import builtin

POINTS = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
pytestmark = [pytest.mark.long, pytest.mark.extra]


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a disk of so many bytes, or makes one read-only, and returns its folder."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        if subprocess.run(["mount", *options, str(place)], capture_output=True).returncode:
            pytest.skip("disks can only be mounted by root")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


@pytest.fixture(params=["full", "read-only"])
def closed(request, mounted):
    """A function that leaves a disk with room for no more than some bytes, and that makes room again."""
    place = mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs")
    filler = place / "filler"

    def close(room=20_000):
        if request.param == "read-only":
            mounted("-o", "remount,ro")
            return
        with open(filler, "wb", buffering=0) as stream, pytest.raises(OSError):
            while True:
                stream.write(b"0" * 4096)
        os.truncate(filler, max(0, filler.stat().st_size - room))

    def reopen():
        if request.param == "read-only":
            mounted("-o", "remount,rw")
        else:
            filler.unlink()

    return place, close, reopen


def files_in(folder):
    """Path -> content of what is below a folder, but for locks and the filler of a disk."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (".lock", "lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "filler"}


def one_sentence(capsys):
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in said[0]
    return said[0]


def test_an_index_that_cannot_be_saved_leaves_the_one_that_was_there(closed):
    place, close, reopen = closed
    index = BuildLSHTable(None).build_from_embeddings(POINTS[:300])
    folder = index.save(place / "index")
    before = files_in(folder)
    close()
    with pytest.raises(OSError) as caught:
        BuildLSHTable(None).build_from_embeddings(POINTS).save(folder)
    assert caught.value.errno in (errno.ENOSPC, errno.EROFS)
    assert files_in(folder) == before and len(BuildLSHTable.load(folder)) == 300
    reopen()
    BuildLSHTable(None).build_from_embeddings(POINTS).save(folder)
    assert len(BuildLSHTable.load(folder)) == 3000


@pytest.mark.parametrize("command", ["run", "sweep", "duplicates"])
def test_a_command_that_cannot_write_its_output_says_so(
    command, closed, image_folder, checkpoint, tmp_path, capsys, in_this_process, monkeypatch
):
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path / "cache"))
    place, close, reopen = closed
    arguments = ["--checkpoint", str(checkpoint), "--output", str(place / "output")]
    if command == "run":
        arguments = ["run", "--dataset", str(image_folder), *arguments]
    elif command == "duplicates":
        arguments = ["duplicates", str(image_folder), "--threshold", "0.9", *arguments]
    else:
        (tmp_path / "s.yaml").write_text(f"dataset: {image_folder}\ncheckpoint: {checkpoint}\nnum_tables: 2\n")
        arguments = ["sweep", str(tmp_path / "s.yaml"), "--jobs", "1", *arguments[2:]]
    close(60_000)
    assert main(arguments) == 1
    said = one_sentence(capsys)
    assert "No space" in said or "full" in said or "Read-only" in said or "cannot be written" in said, said
    finished = {"run.json", "report.html"} & {path.name for path in (place / "output").glob("*")}
    assert not finished and not list(place.rglob(".imgsim-*"))
    reopen()
    assert main(arguments) == 0 and (place / "output" / "report.html").exists()


def test_loading_and_embedding_do_without_a_cache(closed, image_folder, encoder, capsys, monkeypatch):
    place, close, _ = closed
    monkeypatch.setenv("IMGSIM_CACHE", str(place / "cache"))
    monkeypatch.setattr(builtin, "SPLITS", {"train": 6, "validation": 3, "test": 3})
    (place / "cache").mkdir()
    close(0)
    with pytest.warns(UserWarning) as warned:
        images = load_images(image_folder)["train"]
        made = encoder.embed(images)
    assert np.allclose(made, encoder.embed(list(images["image"])), atol=1e-5)
    assert all("cache" in str(warning.message) for warning in warned)
    assert not list(place.rglob(".imgsim-*"))


def test_find_answers_whether_its_cache_can_be_written_or_not(closed, image_folder, checkpoint, capsys, monkeypatch):
    place, close, _ = closed
    monkeypatch.setenv("IMGSIM_CACHE", str(place / "cache"))
    photo = sorted(image_folder.rglob("*.png"))[0]
    arguments = ["find", str(photo), str(image_folder), "--checkpoint", str(checkpoint), "--top-k", "1", "--paths"]
    (place / "cache").mkdir()
    close(0)
    for _ in range(2):
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"{photo}\n"
    assert main(["index", *arguments[2:5]]) == 1  # there is no folder to print
    said = capsys.readouterr()
    assert "no place to keep the index" in said.err and not said.out
    assert main([*arguments, "--open"]) == 0 and capsys.readouterr().out == f"{photo}\n"
