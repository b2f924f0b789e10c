"""What goes wrong while Ray works: tasks that fail, processes that are killed, disks that are full, damaged files."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import PATIENCE, TABLES, cone, embeddings_of, files_of, name_of, wait_for

from imgsim.extras.scale.build import build_index
from imgsim.extras.scale.cluster import cluster, run_job
from imgsim.extras.scale.embed import embed_images, store_embeddings
from imgsim.extras.scale.index import ShardedIndex
from imgsim.index import BuildLSHTable

psutil = pytest.importorskip("psutil", reason="the extra notebooks is not installed")
pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("The shard 'a' is damaged: delete it."), ValueError, "The shard 'a' is damaged: delete it."),
        (OSError(28, "No space left on device"), OSError, "[Errno 28] No space left on device"),
        (OSError("'a' cannot be reached: failed.\nMore"), OSError, "'a' cannot be reached: failed."),
        (ZeroDivisionError("by zero"), RuntimeError, "A task failed: by zero"),
    ],
    ids=["value", "full", "store", "other"],
)
def test_what_a_task_says_is_what_the_job_says(error, kind, said):
    def fail(batch):  # workers cannot import this module
        raise error

    with cluster() as data:
        items = data.from_items([{"part": number} for number in range(4)])
        for job in (items.map_batches(fail), items.groupby("part").map_groups(fail)):
            with pytest.raises(kind) as caught:
                list(run_job(job.iter_rows, 4, "failing", "row"))
            assert str(caught.value) == said


@pytest.mark.long
@pytest.mark.parametrize("step", ["embed", "build"])
def test_a_driver_killed_at_any_moment_leaves_a_whole_version_or_none(
    step, tmp_path, joining, image_folder, checkpoint, assert_same
):
    """IMGSIM_KILLS=50 tries more moments than five."""
    kills, points, times, whole = int(os.environ.get("IMGSIM_KILLS", 5)), cone(1500), [], []
    expected = BuildLSHTable(**TABLES).build_from_embeddings(points)
    for number in range(1 + kills):
        work = tmp_path / str(number)
        words = {
            "embed": ["embed", image_folder, work, "--checkpoint", checkpoint, "--concurrency", "1"],
            "build": ["build", work, "--hash-size", "8", "--num-tables", "10"],
        }
        if step == "build":
            store_embeddings(work, points, shard_rows=60)
        command, start = [sys.executable, "-m", "imgsim", "scale", *map(str, words[step])], time.monotonic()
        with subprocess.Popen(command, env=joining, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            with suppress(subprocess.TimeoutExpired):  # the first one is left to end
                process.wait(number / (kills + 1) * times[0] if times else PATIENCE)
            process.kill()
        times.append(time.monotonic() - start)
        whole.append((work / ("index" if step == "build" else "embeddings") / "manifest.json").exists())
        before = files_of(work)
        if step == "build":
            if not whole[-1]:
                build_index(work, **TABLES)
            assert_same(work, expected, points[:3])
        else:
            if not whole[-1]:
                embed_images(image_folder, work, str(checkpoint), concurrency=1)
            assert embeddings_of(work)[0].tolist() == list(range(len(embeddings_of(tmp_path / "0")[0])))
        assert before.items() <= files_of(work).items()  # nothing is done twice
    print(step, whole)
    assert whole[0] and not all(whole)


def test_a_build_that_is_killed_is_not_seen_and_goes_on(tmp_path, joining, assert_same):
    """The one that is killed is a process of its own, which joins the Ray that runs here."""
    work, points = tmp_path / "work", cone(1500)
    store_embeddings(work, points, shard_rows=60)
    build_index(work, **TABLES)
    command = [sys.executable, "-m", "imgsim", "scale", "build", str(work), "--hash-size", "9", "--seed", "3"]
    before = files_of(work / "index")
    with subprocess.Popen(command, env=joining, stderr=subprocess.DEVNULL) as process:
        new = wait_for(lambda: dict(files_of(work / "index" / "sketches").items() - before.items()))
        process.send_signal(signal.SIGKILL)
    assert len(new) < 25
    assert_same(work, BuildLSHTable(**TABLES).build_from_embeddings(points), points[:3])  # the older version stands
    build_index(work, 9, 10, seed=3)
    assert_same(work, BuildLSHTable(hash_size=9, num_tables=10, seed=3).build_from_embeddings(points), points[:3])
    after = files_of(work / "index")
    assert all(after[path] == at for path, at in new.items()) and not set(before) & set(after)


def test_a_worker_that_is_killed_loses_nothing(tmp_path, image_folder, checkpoint, ray_here):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        for path in image_folder.rglob("*.png"):
            (photos / f"{number:02}-{path.name}").write_bytes(path.read_bytes())
    job = threading.Thread(
        target=embed_images,
        args=(photos, tmp_path / "work", str(checkpoint)),
        kwargs={"concurrency": 2, "shard_rows": 16},
    )
    job.start()
    # Ray's title of a process that embeds; when the first shard is written, it may have ended.
    at_work = "Embed)).submit"
    killed = wait_for(lambda: [one for one in psutil.Process().children(recursive=True) if at_work in name_of(one)])
    killed[0].kill()
    job.join(PATIENCE)
    ids, points, _ = embeddings_of(tmp_path / "work")
    assert ids.tolist() == list(range(12 * 24)) and np.isfinite(points).all()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    (tmp_path / "small").mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path / "small")]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield tmp_path / "small"
    subprocess.run(["umount", "-l", str(tmp_path / "small")], check=True)


def test_a_full_disk_ends_the_job_with_a_sentence_and_what_was_done_is_kept(small_disk, assert_same):
    store_embeddings(small_disk, cone(2000), shard_rows=100)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (1_700_000 - sum(path.stat().st_size for path in small_disk.rglob("*.parquet"))))
    with pytest.raises(OSError, match="No space left"):
        build_index(small_disk, 8, 40)
    kept = files_of(small_disk / "index")
    assert kept and not (small_disk / "index" / "manifest.json").exists()
    assert not list((small_disk / "index").rglob(".*"))
    filler.unlink()
    build_index(small_disk, 8, 40)
    assert all(files_of(small_disk / "index")[path] == at for path, at in kept.items())
    assert_same(small_disk, BuildLSHTable(hash_size=8, num_tables=40).build_from_embeddings(cone(2000)), cone(3))


def test_a_damaged_shard_is_named(tmp_path):
    work, points = tmp_path / "work", cone(300)
    store_embeddings(work, points, shard_rows=50)
    broken = sorted((work / "embeddings").glob("*.parquet"))[2]
    content = bytearray(broken.read_bytes())
    content[200] ^= 1
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=broken.name) as caught:
        build_index(work, **TABLES)
    assert "delete it" in str(caught.value) and not (work / "index" / "manifest.json").exists()
    broken.unlink()
    with pytest.raises(ValueError, match=broken.name):
        build_index(work, **TABLES)
    store_embeddings(work, points, shard_rows=50)
    build_index(work, **TABLES)
    index = ShardedIndex(work)
    for damaged in list((work / "index").rglob("table=*/*.parquet")):
        content = bytearray(damaged.read_bytes())
        content[50] ^= 1
        damaged.write_bytes(content)
    with pytest.raises(ValueError, match="table="):
        index.search(points[:1])
    with pytest.raises(ValueError, match="table="):
        index.export(tmp_path / "index")
    assert not (tmp_path / "index" / "manifest.json").exists()


def test_broken_input_is_left_out_and_listed_within_bounds(tmp_path, images, checkpoint):
    photos, bad = tmp_path / "photos", tmp_path / "bad"
    photos.mkdir()
    paths = images["train"]["image_file_path"]
    rows = pa.array([{"bytes": Path(path).read_bytes(), "path": Path(path).name} for path in paths])
    for number in range(3):
        pq.write_table(pa.table({"image": rows[number * 8 : number * 8 + 8]}), photos / f"{number}.parquet")
    (photos / "1.parquet").write_bytes((photos / "1.parquet").read_bytes()[:-50])
    manifest = embed_images(photos, tmp_path / "work", str(checkpoint), concurrency=1)
    assert manifest["count"] == 16 and [entry["source"] for entry in manifest["skipped"]] == ["1.parquet"]
    assert embeddings_of(tmp_path / "work")[2][8] == "2.parquet#0"
    with pytest.raises(ValueError, match=r"more than 0 images .* such as 1.parquet"):
        embed_images(photos, tmp_path / "work", str(checkpoint), concurrency=1, max_bad=0)
    bad.mkdir()
    for name in ("a", "b", "c"):
        (bad / f"{name}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"more than 2 images .* such as .\.jpg"):
        embed_images(bad, tmp_path / "none", str(checkpoint), concurrency=1, max_bad=2)
    with pytest.raises(ValueError, match=r"no readable image.*a\.jpg"):
        embed_images(bad, tmp_path / "none", str(checkpoint), concurrency=1)
    assert not (tmp_path / "none" / "embeddings" / "manifest.json").exists()
