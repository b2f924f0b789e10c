"""Sweeps at toy scale, through the command line: what they leave, what survives a kill, a failure, a full disk."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import DatasetDict
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from imgsim.encoder import load_encoder
from imgsim.evaluation import evaluate
from imgsim.extras.cli import main
from imgsim.extras.runs.environment import environment
from imgsim.extras.runs.saved import TIMES
from imgsim.extras.runs.settings import DEFAULTS
from imgsim.extras.sweeps import points as points_module
from imgsim.extras.sweeps import sweep
from imgsim.extras.sweeps.inputs import read_inputs, write_inputs
from imgsim.extras.sweeps.summary import mean_over_seeds, pareto_mask, recommend, series_labels
from imgsim.figures import INK, RIGHT, WRONG, plot_matches
from imgsim.images import candidates_and_queries, labels_of, load_images
from imgsim.index import BuildLSHTable

psutil = pytest.importorskip("psutil", reason="the extra notebooks is not installed")
pytest.importorskip("papermill", reason="the extra notebooks is not installed")

CHANGING = ["seconds", *TIMES]


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory, image_folder, checkpoint):
    """Three good points, one that asks for more matches than memory can hold, one with a damaged checkpoint."""
    path = tmp_path_factory.mktemp("sweep") / "toy.yaml"
    broken = path.parent / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").write_bytes(b"cut short")
    points = {"one": {"seed": 3}, "untrained": {"checkpoint": f"untrained:{checkpoint}"}, "bits": {"hash_size": 9}}
    content = {"dataset": str(image_folder), "checkpoint": str(checkpoint), "hash_size": 4, "num_tables": 3}
    points |= {"greedy": {"num_tables": 10**11}, "broken": {"checkpoint": str(broken)}}
    path.write_text(yaml.safe_dump(content | {"points": points}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def toy_sweep(sweep_file):
    """The sweep, its exit code and its table."""
    folder = sweep_file.parent / "whole"
    code = main(["sweep", str(sweep_file), "--output", str(folder), "--jobs", "2"])
    return folder, code, pd.read_parquet(folder / "results.parquet")


def test_table_holds_a_row_a_point_with_settings_metrics_and_versions(toy_sweep):
    folder, _, table = toy_sweep
    assert list(table["point"]) == ["one", "untrained", "bits", "greedy", "broken"]
    metrics = json.loads((folder / table["folder"][0] / "metrics.json").read_text())
    assert {*DEFAULTS, *metrics, "seconds", "version_numpy", "version_code", "error"} <= set(table.columns)
    good = table[:3]
    assert list(good["hash_size"]) == [4, 4, 9] and list(good["seed"]) == [3, 0, 0]
    assert good[list(metrics)].notna().all(axis=None) and (good["candidates"] == 24).all()
    assert list(pd.read_csv(folder / "results.csv")["folder"]) == list(table["folder"])


def test_a_point_measures_what_a_run_measures(toy_sweep, images, encoder):
    table = toy_sweep[2]
    candidates, queries = candidates_and_queries(images, 3)
    index = BuildLSHTable(encoder, hash_size=4, num_tables=3, seed=3).build(candidates)
    parts = [part for split in (candidates, queries) for part in (encoder.embed(split), labels_of(split))]
    metrics = evaluate(index, parts[0], parts[2], parts[1], parts[3])
    for name in set(metrics) - set(TIMES):
        assert table[name][0] == pytest.approx(metrics[name], rel=0.01, abs=0.03), name  # rounding may turn a sign


def test_failed_points_are_recorded_and_stop_no_other(toy_sweep):
    folder, code, table = toy_sweep
    assert code == 1 and table["error"].notna().tolist() == [False, False, False, True, True]
    assert "cannot be loaded as a vision model" in table["error"][4]
    assert "allocate" in table["error"][3] and table["recall_at_10"].isna()[3]
    place = folder / table["folder"][3]
    cells = json.loads((place / "point.ipynb").read_text())["cells"]
    assert any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", []))
    assert not (place / "run.json").exists() and "allocate" in (folder / "report.html").read_text()


def test_report_links_every_points_own_page_and_needs_no_network(toy_sweep):
    folder, _, table = toy_sweep
    page = (folder / "report.html").read_text(encoding="utf-8")
    for point in table["folder"][:3]:
        assert f'href="{point}/report.html"' in page
        own = (folder / point / "report.html").read_text(encoding="utf-8")
        assert own.count("data:image/png;base64,") >= 4 and 'src="http' not in own
    assert "Take " in page and page.count("data:image/png;base64,") >= 5 and 'src="http' not in page


def test_killed_half_way_it_goes_on_where_it_stopped(toy_sweep, sweep_file):
    content, folder = yaml.safe_load(sweep_file.read_text()), sweep_file.parent / "killed"
    content["points"] = {name: content["points"][name] for name in ("one", "bits", "broken")}
    (sweep_file.parent / "killed.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    arguments = ["sweep", str(sweep_file.parent / "killed.yaml"), "--output", str(folder), "--jobs", "1"]
    process = subprocess.Popen([sys.executable, "-m", "imgsim", *arguments], stderr=subprocess.DEVNULL)
    while not list(folder.glob("points/*/run.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = [file for done in folder.glob("points/*/run.json") for file in done.parent.rglob("*")]
    before = {file: file.stat().st_mtime_ns for file in finished}
    assert len({file.parent for file in finished if file.name == "run.json"}) == 1
    assert main(arguments) == 1  # a point fails as in the whole sweep
    assert {file: file.stat().st_mtime_ns for file in finished} == before
    again = pd.read_parquet(folder / "results.parquet")
    table = toy_sweep[2].set_index("point").loc[list(content["points"])].reset_index()
    pd.testing.assert_frame_equal(again.drop(columns=CHANGING), table.drop(columns=CHANGING), check_like=True)


@pytest.mark.parametrize("change", ["nothing", "settings", "inputs", "code", "versions", "half"])
def test_a_finished_point_is_used_again_only_if_it_would_come_out_the_same(change, toy_sweep, tmp_path):
    folder, _, table = toy_sweep
    kept = json.loads((folder / table["folder"][0] / "run.json").read_text())
    digests = {name: value for name, value in kept["digests"].items() if name != "index"}
    job, made_by = {"folder": tmp_path, "settings": dict(kept["settings"]), "digests": digests}, environment()
    (tmp_path / "run.json").write_text(json.dumps(kept))
    if change == "settings":
        job["settings"]["probes"] += 1
    elif change == "inputs":
        job["digests"]["candidates"] = "another"
    elif change == "code":
        made_by["code"] = "another"
    elif change == "versions":
        made_by["versions"] = made_by["versions"] | {"numpy": "1.0"}
    elif change == "half":
        (tmp_path / "run.json").unlink()
    assert sweep.is_finished(job, made_by) == (change == "nothing")


def test_where_no_point_can_run_there_is_no_report(sweep_file, tmp_path, capsys):
    content = yaml.safe_load(sweep_file.read_text())
    content |= {"checkpoint": content.pop("points")["broken"]["checkpoint"]}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(content))
    assert main(["sweep", str(tmp_path / "broken.yaml"), "--output", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "report.html" not in out and "results.csv" in out and "1 of 1 points failed" in err
    assert not (tmp_path / "out" / "report.html").exists()


def test_product_and_named_points(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("checkpoint: [075, builtin]\nhash_size: [6, 8, 8]\nseed: 1\n")
    points = sweep.read_points(path)
    assert [(point["checkpoint"], point["hash_size"]) for point in points] == [
        *(("075", 6), ("075", 8), ("builtin", 6), ("builtin", 8))
    ]
    assert all(point["seed"] == 1 and point["point"] == "" and set(DEFAULTS) < set(point) for point in points)
    path.write_text("seed: [0, 1]\npoints: {few: {num_tables: 2}, many: {num_tables: 9, seed: 5}}\n")
    points = sweep.read_points(path)
    assert [(p["point"], p["num_tables"], p["seed"]) for p in points] == [("few", 2, 0), ("few", 2, 1), ("many", 9, 5)]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("# nothing yet", "holds no settings"),
        ("hash_sise: [6, 8]", "hash_sise"),
        ("hash_size: [6, '8']", "hash_size must be a whole number, not '8'"),
        ("hash_size: [6, 70]", "hash_size is 70"),
        ("hash_size: []", "hash_size"),
        ("seed: {from: 1}", "seed must be a whole number"),
        ("seed: 1\nseed: 2", "occurs twice"),
        ("checkpoint:", "checkpoint is empty"),
        ("points: [6, 8]", "points"),
        ("points: {one: {prob: 3}}", "prob"),
        ("[1, 2]", "name: value"),
        ("seed: [1", "cannot be read"),
        ("dataset: /nowhere/photos", "/nowhere/photos"),
        ("checkpoint: [builtin, /nowhere/model]", "/nowhere/model"),
    ],
)
def test_bad_sweep_files_are_one_sentence_before_any_image_is_read(content, named, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(points_module, "load_images", lambda name: pytest.fail("an image set was read"))
    (tmp_path / "bad.yaml").write_text(content)
    assert main(["sweep", str(tmp_path / "bad.yaml"), "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_folders_of_others_and_sweeps_at_work_are_left_alone(sweep_file, tmp_path, refused):
    (tmp_path / "thesis.doc").touch()
    with refused("other files"):
        sweep.sweep(sweep_file, tmp_path)
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "sweep.json").touch()
    with FileLock(busy / ".lock"), refused("at work"):
        sweep.sweep(sweep_file, busy)
    with refused("jobs is 0"):
        sweep.sweep(sweep_file, busy, jobs=0)


@pytest.mark.parametrize(
    "place", ["imgsim.extras.sweeps.sweep.execute_point", "imgsim.extras.sweeps.inputs.write_inputs"]
)
def test_a_full_disk_is_one_sentence_and_ends_the_sweep(place, sweep_file, tmp_path, refused, monkeypatch):
    called = []

    def fill(*arguments):
        called.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place, fill)
    with refused("is full"):
        sweep.sweep(sweep_file, tmp_path / "full", jobs=1)
    assert len(called) < 4 and not (tmp_path / "full" / "results.csv").exists()


def test_points_at_a_time_are_bounded_by_cores_and_memory(toy_sweep, monkeypatch):
    inputs = set((toy_sweep[0] / "inputs").iterdir())
    for gigabytes, cores, expected in ((100, 8, 8), (1.2, 8, 2), (0.1, 8, 1), (100, 1, 1)):
        memory = type("Memory", (), {"available": gigabytes * 1e9})
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert sweep.default_jobs(inputs) == expected


def test_inputs_hold_out_the_same_queries_as_a_run(tmp_path, draw, encoder):
    (tmp_path / "flat").mkdir()
    for i in range(23):
        draw(i).save(tmp_path / "flat" / f"{i}.png")
    images = load_images(tmp_path / "flat")
    write_inputs(images, encoder, {"dataset": "flat", "checkpoint": "vit", "batch_size": 8}, tmp_path / "inputs")
    for seed in (0, 5):
        data = read_inputs(tmp_path / "inputs", seed)
        candidates, queries = candidates_and_queries(images, seed)
        np.testing.assert_allclose(data.candidates, encoder.embed(candidates), atol=1e-5)
        np.testing.assert_allclose(data.queries, encoder.embed(queries), atol=1e-5)
        assert data.labels is None and data.query_labels is None and len(data.images[0]) == len(candidates) == 21


def test_inputs_keep_labels_and_show_a_query_with_its_matches(tmp_path, images, encoder):
    write_inputs(images, encoder, {"dataset": "noise", "checkpoint": "vit", "batch_size": 8}, tmp_path)
    data, (candidates, queries) = read_inputs(tmp_path), candidates_and_queries(images)
    assert data.labels.tolist() == candidates["labels"][:] and data.query_labels.tolist() == queries["labels"][:]
    figure = plot_matches(data.images, 0, np.array([0, 23, -1]), ["near", "far", "none"])
    assert [axis.get_title() for axis in figure.axes] == ["query 0\nblue", "✓ blue\nnear", "✗ red\nfar"]
    assert [axis.title.get_color() for axis in figure.axes] == [INK, RIGHT, WRONG]


def test_a_split_without_labels_is_embedded_and_its_labels_are_passed_over(tmp_path, images, encoder):
    partly = DatasetDict(images | {"test": images["test"].remove_columns("labels")})
    write_inputs(partly, encoder, {"dataset": "noise", "checkpoint": "vit", "batch_size": 8}, tmp_path)
    data = read_inputs(tmp_path)
    assert data.labels is None and data.query_labels is None and len(data.queries) == len(images["test"])


def test_an_untrained_checkpoint_is_always_the_same_and_another_one(checkpoint, encoder):
    first, second = (load_encoder(f"untrained:{checkpoint}", device="cpu") for _ in range(2))
    assert first.digest == second.digest != encoder.digest and first.dim == encoder.dim


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_front_holds_what_nothing_beats(points):
    cost, gain = np.array(points).T
    expected = [not any(c <= x and g >= y and (c, g) != (x, y) for c, g in points) for x, y in points]
    assert pareto_mask(cost, gain).tolist() == expected


def table_of(rows, **common):
    columns = ["checkpoint", "hash_size", "num_tables", "seed"]
    columns += ["recall_at_10", "candidate_fraction", "exact_label_precision_at_5"]
    table = pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])
    return table.assign(dataset="d", label_precision_at_5=table["exact_label_precision_at_5"], **common)


def test_recommendation_is_computed_from_the_numbers():
    rows = [("a/good", 8, 5, 0, 0.90, 0.20, 0.8), ("a/good", 8, 5, 1, 0.94, 0.22, 0.8)]
    rows += [("a/good", 6, 5, 0, 0.99, 0.60, 0.8), ("a/good", 10, 5, 0, 0.70, 0.10, 0.8)]
    rows += [("a/good", 7, 3, 0, 0.91, 0.30, 0.8), ("b/bad", 8, 5, 0, 1.0, 0.05, 0.5)]
    means = mean_over_seeds(table_of(rows))
    text = recommend(means, 0.9)
    assert text.startswith("Take good with 8 bits and 5 tables: it finds 92% of the true neighbours (90% at worst")
    assert "looking at 21%" in text and "80%, with bad 50%" in text
    assert recommend(means, 0.95).startswith("Take good with 6 bits")
    assert "No settings reach a recall of 100%" in recommend(means, 0.999)
    unlabelled = mean_over_seeds(table_of([(*row[:-1], None) for row in rows]))
    assert recommend(unlabelled, 0.9).startswith("Without labels only the gallery")


def test_a_name_in_the_recommendation_is_no_markup():
    rows = [("/me/<img src=x onerror=alert(1)>", 8, 5, 0, 0.9, 0.2, 0.8), ("/me/<script>", 8, 5, 0, 0.9, 0.2, 0.5)]
    assert "<" not in (text := recommend(mean_over_seeds(table_of(rows)), 0.9)) and text.count("&lt;") == 2


def test_series_are_named_by_what_differs():
    rows = [("a/vit", 8, 5, 0, 1, 1, 1), ("b/vit", 8, 5, 0, 1, 1, 1)]
    assert list(series_labels(table_of(rows))) == ["a/vit", "b/vit"]
    assert list(series_labels(table_of(rows[:1] * 2))) == ["vit", "vit"]
    rows[1] = ("untrained:a/vit", 8, 5, 0, 1, 1, 1)
    assert list(series_labels(table_of(rows, probes=[0, 8]))) == ["vit, probes 0", "untrained:vit, probes 8"]
