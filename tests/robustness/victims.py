"""Work that is killed at random moments, in forks: python victims.py COMMAND COUNT SEED FOLDER CHECKPOINT.

Prints as JSON how often it was killed by which signal, and how often it was done before.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

import imgsim.extras.duplicates.report  # noqa: F401  # loaded before the forks, like the other libraries below
import imgsim.sources.builtin as builtin
from imgsim import BuildLSHTable, load_encoder, load_images
from imgsim.extras.cli import main
from imgsim.extras.find.folder_index import FolderIndex
from imgsim.extras.runs.saved import SavedRun

POINTS = np.random.default_rng(0).standard_normal((301, 16)).astype(np.float32)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.utime", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NOTES = {"notes.txt", ".mine.json"}  # the user's


def photos(folder, count=12):
    """Draw photos in two classes."""
    for i in range(count):
        path = folder / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(grid).resize((40, 30), Image.BICUBIC).save(path)
    return folder


class Victim:
    """A command: `start` does its work, `intact` holds at any moment, `finished` after the next start."""

    def __init__(self, place, checkpoint):
        self.place, self.checkpoint = place, str(checkpoint)
        self.photos, self.output = photos(place / "photos"), place / "output"

    def prepare(self):
        """Make what is there before the first kill."""

    def intact(self):
        """Check what must not be lost."""


class Save(Victim):
    def prepare(self):
        self.save(300)

    def save(self, count):
        BuildLSHTable(None, hash_size=6).build_from_embeddings(POINTS[:count]).save(self.output)

    def start(self):
        self.save(301)

    def intact(self):
        index = BuildLSHTable.load(self.output)
        assert len(index) in (300, 301) and (index.search(POINTS[:9], 1).ids[:, 0] == range(9)).all()

    def finished(self):
        self.intact()
        files = list(self.output.glob("*.npy"))  # hidden ones, too
        assert len(BuildLSHTable.load(self.output)) == 301 and len(files) == 12


class FirstSave(Save):
    """An index saved to a folder that is not there yet."""

    def prepare(self):
        pass

    def intact(self):
        with suppress(ValueError):
            BuildLSHTable.load(self.output)

    def finished(self):
        Save.intact(self)


class Embed(Victim):
    def prepare(self):
        self.images = load_images(self.photos)["train"]
        self.encoder = load_encoder(self.checkpoint, device="cpu")
        self.right = self.encoder.embed(list(self.images["image"]))

    def start(self):
        assert np.allclose(self.encoder.embed(self.images), self.right, atol=1e-5)
        assert np.array_equal(self.encoder.embed(self.images), self.encoder.embed(self.images))

    def finished(self):
        assert len(list(Path(os.environ["IMGSIM_CACHE"], "embeddings").glob("[!.]*.npz"))) == 1


class Draw(Victim):
    def prepare(self):
        builtin.SPLITS = {"train": 12, "validation": 3, "test": 3}
        builtin.render_folder.__defaults__ = (0, builtin.SPLITS, 32)

    def start(self):
        assert {name: len(split) for name, split in load_images("builtin").items()} == builtin.SPLITS

    def finished(self):
        names = [path.name for path in Path(os.environ["IMGSIM_CACHE"]).glob("*leaves-*")]
        assert len([name for name in names if not name.endswith(".lock")]) == 1, names


class Find(Victim):
    def prepare(self):
        self.index = FolderIndex(self.photos, self.checkpoint)
        photos(self.photos, 14)

    def start(self):
        found = FolderIndex(self.photos, self.checkpoint)
        rows = found.embed(sorted(self.photos.rglob("*.png")))
        names = [matches[0].path for matches in found.search(rows, 1)]
        assert names == [str(path) for path in sorted(self.photos.rglob("*.png"))]

    def finished(self):
        assert {path.name for path in self.index.place.iterdir()} >= {"index", "manifest.json", "lock"}
        assert len(list(self.index.place.glob("*.npz"))) <= 2  # what is not needed any more goes with the next change


class Command(Victim):
    """A command of the command line, with an output of its own."""

    arguments: tuple = ()

    def start(self):
        assert main([*map(str, self.arguments), "--output", str(self.output)]) == 0


class Duplicates(Command):
    def prepare(self):
        self.arguments = ("duplicates", self.photos, "--checkpoint", self.checkpoint, "--threshold", "0.99")

    def finished(self):
        assert {path.name for path in self.output.iterdir()} == {"report.html", "duplicates.csv", "duplicates.json"}


class Run(Command):
    def prepare(self):
        self.arguments = ("run", "--dataset", self.photos, "--checkpoint", self.checkpoint, "--num-tables", "2")
        self.start()
        for name in NOTES:
            (self.output / name).write_text("mine")

    def intact(self):
        beside = self.output.with_name(f".{self.output.name}.imgsim") / "before"
        places = [place for place in (beside, self.output) if (place / "run.json").exists()]
        assert places and any(len(SavedRun(place).index) == 12 for place in places)
        for name in NOTES:
            assert any((place / name).exists() for place in (beside, self.output)), name

    def finished(self):
        assert len(SavedRun(self.output).index) == 12 and (self.output / "report.html").exists()
        assert all((self.output / name).read_text() == "mine" for name in NOTES)
        assert not self.output.with_name(f".{self.output.name}.imgsim").joinpath("before").exists()


class Sweep(Command):
    def prepare(self):
        file = self.place / "sweep.yaml"
        file.write_text(f"dataset: {self.photos}\ncheckpoint: {self.checkpoint}\nnum_tables: 2\nhash_size: [2, 3]\n")
        self.arguments = ("sweep", file, "--jobs", "1")

    def finished(self):
        assert len(list(self.output.glob("points/*/run.json"))) == 2 and (self.output / "report.html").exists()


COMMANDS = {
    **{"save": Save, "first-save": FirstSave, "embed": Embed, "draw": Draw, "find": Find},
    **{"duplicates": Duplicates, "run": Run, "sweep": Sweep},
}


def notebooks_in_this_process():
    """Let papermill execute notebooks here: a kernel of its own would have to load torch each time."""
    from IPython.core.inputtransformer2 import TransformerManager
    from papermill.engines import Engine, papermill_engines

    class InThisProcess(Engine):
        @classmethod
        def execute_managed_notebook(cls, manager, *args, **settings):
            names = {}
            for cell in manager.nb.cells:
                if cell.cell_type == "code":
                    source = cell.source.replace('assert "torch" not in sys.modules', "")  # here it is
                    exec(TransformerManager().transform_cell(source), names)

    papermill_engines._engines[None] = InThisProcess


def changes_files(event, arguments):
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & WRITES)
    return event in CHANGES


def fork(work, at=None, sent=None, log=None):
    """Do work in a process of its own; with `at` it sends itself a signal before it changes files for that time."""
    sys.stdout.flush()
    if number := os.fork():
        return number
    status, seen = 1, 0
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1), os.dup2(stream, 2)

        def hook(event, arguments):
            nonlocal seen
            if changes_files(event, arguments):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), sent)

        sys.addaudithook(hook)
        work()
        status = 0
        if at == 0:  # count only
            Path(f"{log}.count").write_text(str(seen))
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def ended(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def all_of(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def torment(command, count, seed, place, checkpoint):
    """Kill a command `count` times, half at a time and half before a change of files; return the counts."""
    os.environ["IMGSIM_CACHE"] = str(place / "cache")
    notebooks_in_this_process()
    victim, rng = COMMANDS[command](place, checkpoint), np.random.default_rng([seed, *command.encode()])
    log = str(place / "log.txt")

    def right(work):
        code = ended(fork(work, log=log))
        assert code == 0, f"{command}: {code}\n{Path(log).read_text()[-3000:]}"

    def all_right():
        victim.start()
        victim.finished()

    victim.prepare()
    (place / "notes.txt").write_text("mine")
    foreign = all_of(victim.photos)
    snapshot = place.with_name(f"{place.name}-before")
    os.system(f"cp -a '{place}' '{snapshot}'")
    start = time.perf_counter()
    assert ended(fork(victim.start, at=0, log=log)) == 0, Path(log).read_text()[-3000:]
    seconds, changes = time.perf_counter() - start, int(Path(f"{log}.count").read_text())
    moments = rng.permutation(changes) + 1
    counts = dict.fromkeys(["SIGKILL", "SIGTERM", "SIGINT", "done before"], 0)
    slow = command in ("run", "sweep")
    for number in range(count):
        if not slow or number % 5 == 0:  # else it goes on where the last one was killed
            os.system(f"rm -rf '{place}' && cp -a '{snapshot}' '{place}'")
        sent = SIGNALS[number % 3]
        if number % 2:
            child = fork(victim.start, int(moments[number // 2 % changes]), sent, log)
        else:
            child = fork(victim.start, log=log)
            time.sleep(rng.uniform(0, seconds))
            with suppress(ProcessLookupError):
                os.kill(child, sent)
        code = ended(child)
        if code == 0:
            counts["done before"] += 1
        elif code in (-sent, 130) or (sent == signal.SIGINT and "Interrupted" in Path(log).read_text()):
            counts[sent.name] += 1
        else:
            raise AssertionError(f"{command}, {number}: {code}\n{Path(log).read_text()[-3000:]}")
        right(victim.intact)
        if not slow or number % 5 == 4 or number == count - 1:
            right(all_right)
        assert all_of(victim.photos) == foreign and (place / "notes.txt").read_text() == "mine"
        Path(log).unlink()
    return counts


if __name__ == "__main__":
    command, count, seed, place, checkpoint = sys.argv[1:]
    Path(place).mkdir(parents=True)
    print(json.dumps(torment(command, int(count), int(seed), Path(place), checkpoint)))
