"""Whole runs through the command line, at toy scale: what they leave behind, and what they refuse."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from PIL import Image
from safetensors.torch import load_file, save_file

from imgsim.encoder import load_encoder
from imgsim.extras.cli import main
from imgsim.extras.runs.environment import NOTEBOOKS
from imgsim.extras.runs.inputs import all_images
from imgsim.extras.runs.report import read_result, write_report
from imgsim.extras.runs.run import default_folder, fresh_folder, run
from imgsim.extras.runs.saved import SavedRun
from imgsim.extras.runs.settings import DEFAULTS, complete_settings, read_params, run_name
from imgsim.extras.sweeps.points import read_points
from imgsim.images import candidates_and_queries, load_images
from imgsim.index import BuildLSHTable

pytest.importorskip("papermill", reason="the extra notebooks is not installed")

ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    *("schema", "dataset", "checkpoint", "dim", "hash_size", "num_tables", "planes", "probes", "seed", "dtype"),
    *("candidates", "queries"),
    *("exact_label_precision_at_5", "label_precision_at_5", "recall_at_10", "candidate_fraction", "compared_fraction"),
    *("participation_ratio", "embed_images_per_second", "build_seconds", "query_ms"),
}
AFTERWARDS = {"held_out", "indexed"}  # added when all notebooks have run
TIMES = {"embed_images_per_second", "build_seconds", "query_ms"}


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory, image_folder, checkpoint):
    """A run from the command line, with settings none of which is a default."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    options = ["run", "--dataset", str(image_folder), "--checkpoint", str(checkpoint), "--output", str(folder)]
    assert main([*options, "--params", str(ROOT / "params" / "ci.yaml"), "--num-tables", "3"]) == 0
    return folder


@pytest.fixture
def put(tmp_path, draw):
    """A function that writes small images under these names into a folder, which it returns."""

    def write(*names):
        for i, name in enumerate(names):
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            draw(i).save(tmp_path / "set" / name)
        return tmp_path / "set"

    return write


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_run_leaves_everything_it_promises(toy_run):
    folder = toy_run
    expected = {f"{name}.ipynb" for name in NOTEBOOKS} | {"report.html", "figures", "index"}
    assert {path.name for path in folder.iterdir()} == expected | {"run.json", "metrics.json", "images.json"}
    assert not any(path.name.startswith(folder.name + ".") for path in folder.parent.iterdir())
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["hash_size"] == 6 and settings["num_tables"] == 3  # from the file; from the option before it
    made_with = json.loads((folder / "index" / "manifest.json").read_text())["encoder"]
    assert (made_with["pooling"], made_with["dtype"]) == ("class token", "bfloat16")


def test_metrics_hold_every_key(toy_run):
    metrics = metrics_of(toy_run)
    assert set(metrics) == KEYS | AFTERWARDS and metrics["schema"] == 1
    assert (metrics["held_out"], metrics["indexed"]) == (15, 39)
    assert (metrics["candidates"], metrics["queries"], metrics["hash_size"], metrics["num_tables"]) == (24, 9, 6, 3)
    assert all(metrics[key] > 0 for key in TIMES)


def test_run_json_holds_all_that_decides_a_result(toy_run):
    content = json.loads((toy_run / "run.json").read_text())
    assert set(content["digests"]) == {"images", "candidates", "queries", "checkpoint", "index"}
    assert {"planes", "mean", "vectors"} < set(content["digests"]["index"])
    assert {"versions", "machine", "code", "commit", "changed"} == set(content["environment"])


@pytest.fixture
def quick_runs(monkeypatch, in_this_process):
    """Runs of notebooks 3 and 4 only, which make all that a repetition compares."""
    monkeypatch.setattr("imgsim.extras.runs.run.NOTEBOOKS", NOTEBOOKS[2:])


def test_repeat_says_metric_by_metric_that_a_run_came_out_the_same(toy_run, capsys, quick_runs):
    assert main(["repeat", str(toy_run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0] for line in lines if line.endswith(" identical")}
    assert told == (KEYS | AFTERWARDS) - TIMES - {"dataset", "checkpoint"}
    assert "Changed: nothing." in lines and lines[-1] == "Identical: every metric came out the same."


def test_repeat_says_what_differs_when_an_image_and_a_weight_have_changed(
    toy_run, tmp_path, checkpoint, draw, capsys, quick_runs
):
    content, run = json.loads((toy_run / "run.json").read_text()), tmp_path / "run"
    run.mkdir()
    shutil.copy(toy_run / "metrics.json", run)
    for kind in ("dataset", "checkpoint"):
        shutil.copytree(content["settings"][kind], tmp_path / kind)
        content["settings"][kind] = str(tmp_path / kind)
    (run / "run.json").write_text(json.dumps(content))
    draw(99).save(next((tmp_path / "dataset" / "train" / "blue").iterdir()))
    weights = load_file(tmp_path / "checkpoint" / "model.safetensors")
    weights["vit.layernorm.weight"][0] += 0.5
    save_file(weights, tmp_path / "checkpoint" / "model.safetensors", metadata={"format": "pt"})
    assert main(["repeat", str(run)]) == 1
    *_, unchanged, changed, verdict = capsys.readouterr().out.splitlines()
    assert changed == "Changed: checkpoint, images of the candidates, projection, index."
    assert "images of the queries" in unchanged and "code" in unchanged and "participation_ratio" in verdict


@pytest.mark.parametrize(
    ("metrics", "digests", "verdict", "exit_code"),
    [
        ({}, {}, "Identical", 0),
        ({"participation_ratio": 1.001}, {"index": {"vectors": "other"}}, "The same within rounding", 0),
        ({"recall_at_10": 1.002, "candidate_fraction": 0.999}, {}, "The same within rounding", 0),
        ({"participation_ratio": 1.02}, {"index": {"vectors": "other"}}, "Differs in participation_ratio.", 1),
        ({"candidates": 2}, {}, "Differs in candidates.", 1),
        ({"participation_ratio": 1.001}, {"candidates": "other"}, "Differs in participation_ratio.", 1),
    ],
)
def test_repeat_tells_rounding_from_a_difference(
    metrics, digests, verdict, exit_code, toy_run, tmp_path, capsys, monkeypatch
):
    """A run whose metrics were multiplied and whose digests were replaced, as on another machine."""
    record, measured = json.loads((toy_run / "run.json").read_text()), metrics_of(toy_run)
    record["digests"] |= digests | {"index": record["digests"]["index"] | digests.get("index", {})}
    (tmp_path / "run.json").write_text(json.dumps(record))
    measured |= {name: measured[name] * factor for name, factor in metrics.items()}
    (tmp_path / "metrics.json").write_text(json.dumps(measured))
    monkeypatch.setattr("imgsim.extras.runs.run.run", lambda settings, output: toy_run)
    assert main(["repeat", str(tmp_path)]) == exit_code
    *lines, same, changed, last = capsys.readouterr().out.splitlines()
    assert last.startswith(verdict) and ("index" in changed) == (exit_code == 1 and "index" in digests)
    assert ("index" in same) == ("index" not in digests)
    for name in metrics:
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line.endswith("differs" if exit_code else "the same within rounding")


def test_query_prints_a_ranked_table_and_draws_it(toy_run, image_folder, checkpoint, capsys):
    photo = next((image_folder / "test" / "red").iterdir())
    assert main(["query", str(toy_run), str(photo), "--top-k", "4"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    encoder = load_encoder(checkpoint, dtype="bfloat16")  # as params/ci.yaml says
    matches = BuildLSHTable.load(toy_run / "index", encoder).query(photo, top_k=4, verbose=False)
    assert [float(line.split()[2]) for line in table[1:]] == pytest.approx(matches.cosine.tolist(), abs=6e-4)
    images = all_images(load_images(image_folder), seed=3)
    assert [line.split()[-1] for line in table[1:]] == [images["image_file_path"][i] for i in matches.ids]
    assert table[1].endswith(f"{photo}")  # held out to measure with, but not lost
    target = toy_run / "figures" / f"query-{photo.stem}.png"
    assert last == f"Picture: {target}" and Image.open(target).width > 500


def test_every_image_is_in_the_index_of_a_run(toy_run, image_folder):
    run = SavedRun(toy_run)
    assert sorted(run.index.keys) == sorted(map(str, image_folder.rglob("*.png")))
    found = run.index.search(run.index.encoder.embed(run.index.keys), 1)
    assert found.ids[:, 0].tolist() == list(range(39))
    assert run.index.labels.tolist() == run.images["labels"][:]


def test_images_that_have_changed_since_the_run_are_noticed(toy_run, image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "red" / "another.png").write_bytes(
        (image_folder / "train" / "red" / "red.1.png").read_bytes()
    )
    run = SavedRun(toy_run)
    assert len(run.images) == 39
    moved = SavedRun(toy_run)
    moved.settings["dataset"] = str(tmp_path / "photos")
    with pytest.raises(ValueError, match="not those of the index any more"):
        _ = moved.images


@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ({"train": 20}, 18),
        ({"train": 4, "test": 2, "validation": 3}, ["train", "test", "validation"]),
        ({"train": 4, "validation": 3}, ["train", "validation"]),
        ({"test": 20}, 18),
        ({"other": 20, "test": 3}, ["other", "test"]),
    ],
)
def test_all_images_are_the_candidates_and_then_the_others(sizes, order):
    start, splits = 0, {}
    for name, size in sizes.items():
        splits[name] = Dataset.from_dict({"image": list(range(start, start + size))})
        start += size
    images = all_images(DatasetDict(splits), seed=0)["image"][:]
    assert sorted(images) == list(range(start))
    if isinstance(order, list):
        assert images == [number for name in order for number in splits[name]["image"]]
    else:
        assert images[:order] == candidates_and_queries(DatasetDict(splits), 0)[0]["image"][:]


def test_query_refuses_in_one_sentence(toy_run, image_folder, tmp_path, capsys):
    photo = next((image_folder / "test" / "red").iterdir())
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    content = json.loads((toy_run / "run.json").read_text())
    other, bare = tmp_path / "other", tmp_path / "bare"
    shutil.copytree(toy_run, other)
    content["settings"]["checkpoint"] = "untrained:" + content["settings"]["checkpoint"]
    (other / "run.json").write_text(json.dumps(content))
    bare.mkdir()
    shutil.copy(toy_run / "run.json", bare)
    for arguments, named in (
        ([str(tmp_path), str(photo)], "run.json"),
        ([str(bare), str(photo)], "holds no index"),
        ([str(toy_run), "/nowhere.jpg"], "/nowhere.jpg"),
        ([str(toy_run), str(tmp_path / "broken.jpg")], "broken.jpg"),
        ([str(toy_run), str(photo), "--top-k", "0"], "top_k must be a whole number"),
        ([str(other), str(photo)], "was made with the checkpoint"),
        ([str(toy_run), str(photo), "--output", str(bare)], "is a folder"),
        ([str(toy_run), str(photo), "--output", str(bare / "picture.xyz")], "xyz"),
    ):
        assert main(["query", *arguments]) == 1
        message = capsys.readouterr().err.strip()
        assert message.startswith("error: ") and named in message and "\n" not in message
    assert main(["query", str(toy_run), str(photo), "--output", str(bare / "picture")]) == 0
    assert {path.name for path in bare.iterdir()} == {"run.json", "picture"}


def test_plain_papermill_from_another_folder_gives_what_run_gives(toy_run, image_folder, checkpoint, tmp_path):
    shutil.copytree(image_folder, tmp_path / "photos")
    shutil.copytree(checkpoint, tmp_path / "075")
    settings = "dataset: photos\nhash_size: 6\nnum_tables: 3\nprobes: 2\nseed: 3\ndtype: bfloat16\n"
    (tmp_path / "params.yaml").write_text(settings)
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "04_inference.ipynb"), "out.ipynb"]
    command += ["-f", "params.yaml", "-p", "output", "results", "-r", "checkpoint", "075"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    again, before = metrics_of(tmp_path / "results"), metrics_of(toy_run)
    assert again["checkpoint"] == "075"
    for name in KEYS - TIMES - {"dataset", "checkpoint"}:
        close = isinstance(before[name], float) and pytest.approx(before[name], rel=0.01, abs=0.03)  # turned signs
        assert again[name] in (before[name], close), name


def test_report_is_one_page_that_needs_no_network(toy_run):
    page = (toy_run / "report.html").read_text(encoding="utf-8")
    assert "<math" in page and "$p^k$" not in page and page.count("data:image/png;base64,") >= 19
    assert 'src="http' not in page and "colab-badge" not in page and "<script" not in page
    assert page.count(' alt="') == page.count("<img") and "No description" not in page  # nbconvert's, for want of any


def test_report_starts_with_the_result_and_folds_the_code(toy_run):
    page = (toy_run / "report.html").read_text(encoding="utf-8")
    result, contents, story = re.split("<nav>|</nav>", page)
    metrics = metrics_of(toy_run)
    assert "hash_size 6, num_tables 3" in result.replace("\N{NO-BREAK SPACE}", " ")
    assert f"<b>{metrics['recall_at_10']:.1%}</b>of the ten nearest found" in result
    assert result.count("<img") in (3, 4) and "<b>39</b>images in the index" in result and "query's label" in result
    for title in ("Embeddings", "Hashing", "Tables", "Inference", "Wrong answers"):
        assert title in contents and title in story
    assert set(re.findall('href="#(.*?)"', contents)) <= set(re.findall('id="(.*?)"', story))
    assert story.count("<details><summary>") == story.count('class="input"') > 50


def test_report_escapes_names_and_has_no_number_for_labels_that_are_not_there(toy_run, tmp_path):
    result = read_result(toy_run, {"dataset": "/<i>photos", "checkpoint": "a&b"})
    result |= {"metrics": result["metrics"] | {"label_precision_at_5": None}}
    result["numbers"] = [row for row in result["numbers"] if row[0] != "label_precision_at_5"]
    write_report([toy_run / f"{name}.ipynb" for name in NOTEBOOKS], tmp_path / "report.html", result)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<i>" not in page and page.count("&lt;i&gt;photos") == 2 and "a&amp;b" in page
    assert "label" not in page.partition("<nav>")[0]


def test_failing_notebook_is_one_sentence_and_the_run_before_it_stays(tmp_path, image_folder, checkpoint, capsys):
    folder, broken = tmp_path / "run", tmp_path / "broken"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:1000])
    code = main(["run", "--dataset", str(image_folder), "--checkpoint", str(broken), "--output", str(folder)])
    assert code == 1 and [path.name for path in folder.iterdir()] == ["run.json"]
    assert "cannot be loaded as a vision model" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "run.failed" / "01_embeddings.ipynb").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dataset", "/nowhere/photos"], "/nowhere/photos"),
        (["--dataset", "EMPTY"], "EMPTY"),
        (["--dataset", "LONELY"], "at least two images"),
        (["--checkpoint", "EMPTY"], "EMPTY"),
        (["--checkpoint", "nobody/nothing"], "builtin"),
        (["--dataset", "nobody/nothing"], "builtin"),
        (["--hash-size", "0"], "hash_size must be a whole number"),
        (["--hash-size", "65"], "hash_size is 65"),
        (["--num-tables", "0"], "num_tables must be a whole number"),
        (["--top-k", "0"], "top_k must be a whole number"),
        (["--dtype", "float17"], "float17"),
        (["--params", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--params", "MISSPELT"], "hash_sise"),
        (["--params", "WRONG"], "hash_size"),
        (["--split", "test"], "built-in"),
        (["--dataset", "LONELY", "--split", "test"], "no split 'test', only train"),
        (["--dataset", "LONELY", "--revision", "v1"], "no revisions"),
        (["--dataset", "LONELY", "--label-column", "species"], "no columns"),
        (["--dataset", "nobody/nothing?split=test", "--split", "train"], "already"),
        (["--dataset", "nobody/nothing?colour=red"], "image=..."),
        (["--params", "TWICE"], "seed occurs twice"),
        (["--checkpoint", ""], "checkpoint is empty"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(options, named, tmp_path, draw, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "LONELY").mkdir()
    draw(0).save(tmp_path / "LONELY" / "only.png")
    (tmp_path / "MISSPELT").write_text("hash_sise: 8\n")
    (tmp_path / "TWICE").write_text("seed: 8\nseed: 9\n")
    (tmp_path / "WRONG").write_text("hash_size: '8'\n")
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    assert main(["run", *options, "--output", str(tmp_path / "out")]) == 1
    assert time.monotonic() - start < 45  # also where the Hub cannot be reached
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and named in message and "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--hash-sise", "8"], ["--hash-size", "eight"], ["--hash", "8"]])
def test_unknown_options_are_one_sentence_too(options, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", *options])
    message = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and message.startswith("error: ") and "\n" not in message


def test_options_of_a_data_set_become_part_of_its_name(monkeypatch, tmp_path):
    asked = []

    def run(settings, output):
        asked.append(settings["dataset"])
        return tmp_path

    monkeypatch.setattr("imgsim.extras.runs.run.run", run)
    params = tmp_path / "params.yaml"
    params.write_text("dataset: owner/name\n")
    options = ["--revision", "v1", "--split", "train", "--image-column", "img", "--label-column", "species"]
    assert main(["run", "--params", str(params), *options]) == 0
    assert main(["run", "--params", str(params)]) == 0
    assert asked == ["owner/name@v1?split=train&image=img&label=species", "owner/name"]


def test_runs_that_differ_have_folders_that_differ():
    base = {"checkpoint": "/photos/vit", "dataset": "/a/beans"}
    others = ({"dtype": "bfloat16"}, {"checkpoint": "untrained:/photos/vit"}, {"dataset": "/a/beans?split=test"})
    others += ({"probes": 3}, {"seed": 1}, {"hash_size": 9}, {"num_tables": 9})
    names = [run_name(complete_settings(base | other)) for other in ({}, *others)]
    assert names[0] == "beans-vit-k8-L10-p8-seed0" and names[2] == "beans-untrained-vit-k8-L10-p8-seed0"
    assert len(set(names)) == len(names) and not any(set(name) & set("/?=:") for name in names)


def test_checkpoint_called_075_stays_text(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("checkpoint: 075\nseed: 7\n")
    assert read_params(params) == {"checkpoint": "075", "seed": 7}
    assert run_name(complete_settings({"checkpoint": "075"})) == "builtin-075-k8-L10-p8-seed0"
    with pytest.raises(ValueError, match="checkpoint must be text, not 75"):
        complete_settings({"checkpoint": 75})
    assert set(complete_settings({})) == set(DEFAULTS)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dataset: photos\n\thash_size: 6\n", "line 2, character 1: "),
        ('seed: 1\ndataset: "C:\\photos"\n', "line 2, character 14: found unknown escape"),
        ("seed: 1\nseed: 2\n", "line 2, character 1: seed occurs twice"),
    ],
)
def test_a_fault_in_a_settings_file_is_named_with_its_line(text, named, tmp_path, refused):
    (tmp_path / "p.yaml").write_text(text)
    with refused(named):
        read_params(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", ["hash_size", "dataset"])
def test_what_grows_in_secret_is_not_written_out(name, tmp_path, refused):
    nested = "&a0 [x,x,x,x,x,x,x,x,x,x]"
    for i in range(1, 12):
        nested = f"&a{i} [{nested}" + f",*a{i - 1}" * 9 + "]"
    (tmp_path / "p.yaml").write_text(f"{name}: {nested}\n")
    for read in (lambda path: complete_settings(read_params(path)), read_points):
        with pytest.raises(ValueError, match=name) as caught:
            read(tmp_path / "p.yaml")
        assert len(str(caught.value)) < 200


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(ValueError, match="other files"), fresh_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.doc").exists()


def test_a_killed_run_is_cleared_away_and_what_it_meant_to_replace_is_kept(tmp_path):
    folder, before = tmp_path / "run", tmp_path / ".run.imgsim" / "before"
    folder.mkdir(), before.mkdir(parents=True)
    (folder / "thoughts.md").touch()  # somebody else's
    (folder / "01_embeddings.ipynb").touch()  # half a run
    (before / "run.json").touch()  # the whole one that it would have replaced
    with pytest.raises(KeyboardInterrupt), fresh_folder(folder):
        assert not any(folder.iterdir())
        raise KeyboardInterrupt
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "thoughts.md"] and not before.exists()


def test_a_run_that_was_killed_while_it_was_cleared_away_is_no_obstacle(tmp_path):
    folder, before = tmp_path / "run", tmp_path / ".run.imgsim" / "before"
    (folder / "figures").mkdir(parents=True), before.mkdir(parents=True)
    (folder / "figures" / "01-map.png").touch()  # all that is left of it
    (before / "run.json").touch()
    with pytest.raises(KeyboardInterrupt), fresh_folder(folder):
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_was_killed_at_its_very_end_is_whole(fails, tmp_path, capsys):
    folder, before = tmp_path / "run", tmp_path / ".run.imgsim" / "before"
    folder.mkdir(), before.mkdir(parents=True)
    (folder / "run.json").write_text("new")
    (before / "figures").mkdir()
    for name in ("report.html", "figures/01-map.png", "figures/mine.png"):  # not removed yet
        (before / name).touch()
    with suppress(KeyboardInterrupt), fresh_folder(folder):
        (folder / "run.json").write_text("newer")
        if fails:
            raise KeyboardInterrupt
    assert (folder / "run.json").read_text() == ("new" if fails else "newer")
    assert (folder / "figures" / "mine.png").exists() and not (folder / "report.html").exists()
    assert "stopped at its end" in capsys.readouterr().out


def test_what_no_run_wrote_is_never_deleted(tmp_path):
    strangers = ["run.before/thesis.txt", "run.failed/notes.txt", "run/notes.md", "run/index/a.csv", "run/01.png"]
    for name in (*strangers, "run/run.json", "run/index/ids-0.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with fresh_folder(tmp_path / "run"):
        (tmp_path / "run" / "run.json").touch()
    with pytest.raises(OSError, match="full"), fresh_folder(tmp_path / "run"):
        (tmp_path / "run" / "01_embeddings.ipynb").touch()
        raise OSError("disk full")
    assert all((tmp_path / name).exists() for name in strangers)
    assert not (tmp_path / "run" / "index" / "ids-0.npy").exists()
    assert (tmp_path / "run.failed1" / "01_embeddings.ipynb").exists()


def test_a_file_is_no_place_for_a_run(tmp_path, refused):
    (tmp_path / "notes").write_text("mine")
    with refused("is a file"), fresh_folder(tmp_path / "notes"):
        pytest.fail("the run began")
    assert (tmp_path / "notes").read_text() == "mine"


def test_two_runs_at_once_do_not_share_a_folder(tmp_path, refused):
    with fresh_folder(tmp_path / "run"):
        (tmp_path / "run" / "run.json").touch()
        with refused("Another run"), fresh_folder(tmp_path / "run"):
            pass
    with fresh_folder(tmp_path / "run"):
        pass


def test_datasets_of_the_same_name_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = (complete_settings({"dataset": f"/{place}/photos"}) for place in ("home", "work"))
    folder = default_folder(one)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": one}))
    assert default_folder(one) == folder == Path("outputs", run_name(two)) != default_folder(two)
    assert default_folder(one | {"top_k": 9}) == folder


@pytest.mark.parametrize("inside", ["photos/run", "photos", "."])
def test_an_output_in_the_dataset_or_around_it_is_refused(inside, put, refused):
    photos = put("photos/a/1.png", "photos/b/2.png") / "photos"
    with refused("must not lie in one another"):
        run({"dataset": str(photos)}, photos.parent / inside)
    assert len(list(photos.rglob("*"))) == 4


@pytest.mark.parametrize(
    "change",
    [lambda photos: shutil.copy(photos / "1.png", photos / "3.png"), lambda photos: (photos / "2.png").unlink()],
)
def test_a_run_whose_images_change_fails(change, put, monkeypatch, refused, tmp_path):
    photos = put("1.png", "2.png")
    monkeypatch.setattr("imgsim.extras.runs.run.execute", lambda *args: change(photos))
    with refused("changed during the run"):
        run({"dataset": str(photos)}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
