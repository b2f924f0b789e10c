"""Work that is killed at any moment: nothing is lost, nothing of others is touched, and the next start is right.

IMGSIM_KILLS says how often each kind of work is killed, by three signals in turn.
"""

import json
import os
import subprocess
import sys

import pytest

KILLS = int(os.environ.get("IMGSIM_KILLS", 6))
# One process imports everything, without starting a thread, and forks for every trial.
WORK = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
import torch, transformers, pandas, networkx, imagehash, jinja2
torch.set_num_threads(1)
from imgsim import BuildLSHTable, load_encoder, load_images
from imgsim.extras.cli import main
from imgsim.extras.duplicates import report
from imgsim.extras.explore import page
from imgsim.extras.find import answers, folder_index
from imgsim.sources import builtin

kind, count, photos, checkpoint, place = sys.argv[1], int(sys.argv[2]), *map(Path, sys.argv[3:])
place, names = place / kind, sorted(path.name for path in photos.iterdir())
points = np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32)
settings = ["--checkpoint", str(checkpoint)]
os.environ["IMGSIM_CACHE"] = str(place / "cache")


def save():
    BuildLSHTable(hash_size=5, seed=1).build_from_embeddings(points).save(place / "index")


def saved():
    index = BuildLSHTable.load(place / "index")
    assert index.seed in (0, 1) and index.search(points[:9], 1).ids[:, 0].tolist() == list(range(9))


def find():
    assert main(["find", str(photos / names[3]), str(photos), *settings, "--quiet", "--paths", "--top-k", "1"]) == 0


def duplicates():
    assert main(["duplicates", str(photos), *settings, "--threshold", ".9", "--output", str(place / "report")]) == 0
    assert len(json.loads((place / "report" / "duplicates.json").read_text())["groups"]) == 1


def embed():
    encoder = load_encoder(checkpoint, device="cpu")
    first = encoder.embed(load_images(photos)["train"])
    assert np.array_equal(first, encoder.embed(load_images(photos)["train"])) and np.isfinite(first).all()


def draw():
    render = builtin.render_folder
    builtin.SPLITS = sizes = {"train": 9, "test": 3}
    builtin.render_folder = lambda folder: render(folder, sizes=sizes, size=48)
    assert len(list(builtin.builtin_folder().rglob("*.jpg"))) == 12


def explore():
    assert main(["explore", str(photos), *settings, "--output", str(place / "page.html")]) == 0
    assert (place / "page.html").read_text().rstrip().endswith("</html>")


def start(work):
    if pid := os.fork():
        return pid
    output = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        print(repr(error), flush=True)
    finally:
        os._exit(code)


def ended(pid):
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, (place / "output.txt").read_text()


def prepare():
    shutil.rmtree(place, ignore_errors=True)
    (place / "cache").mkdir(parents=True)
    for folder in (place, place / "cache"):
        (folder / "mine.txt").write_text("mine")
    if kind == "save":
        BuildLSHTable(hash_size=6, seed=0).build_from_embeddings(points).save(place / "index")


work, check, times = globals()[kind], saved if kind == "save" else lambda: None, []
for _ in range(3):
    prepare()
    begin = time.perf_counter()
    status, said = ended(start(work))
    assert status == 0, said
    times.append(time.perf_counter() - begin)
chance, died = random.Random(kind), 0
for trial in range(count):
    if trial % 3 == 0:
        prepare()  # else the next kill meets what the last one has left
    pid = start(work)
    time.sleep(chance.uniform(0, 0.9) * min(times))
    os.kill(pid, [signal.SIGKILL, signal.SIGTERM, signal.SIGINT][trial % 3])
    died += ended(pid)[0] != 0
    check()
    status, said = ended(start(work))
    assert status == 0, (trial, said)
    check()
    for folder in (place, place / "cache"):
        assert (folder / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in photos.iterdir()) == names
    litter = [path.name for path in place.rglob(".*") if not path.name.endswith(".lock")]
    assert litter == [], (trial, litter)
print(json.dumps({"died": died, "usual": min(times)}))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory, draw):
    folder = tmp_path_factory.mktemp("killed") / "photos"
    folder.mkdir()
    for number in range(12):
        draw(number).save(folder / f"{number}.png")
    draw(3).resize((20, 15)).save(folder / "copy of 3.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["save", "find", "duplicates", "embed", "draw", "explore"])
def test_killed_work_loses_nothing_and_the_next_start_is_right(kind, photos, checkpoint, tmp_path):
    for package in ("pandas", "networkx", "imagehash"):
        pytest.importorskip(package, reason="the extra duplicates is not installed")
    command = [sys.executable, "-c", WORK, kind, str(KILLS), str(photos), str(checkpoint), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert answer.returncode == 0, answer.stderr[-3000:]
    counts = json.loads(answer.stdout.splitlines()[-1])
    print(kind, counts)
    assert counts["died"] > 0
