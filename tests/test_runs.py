"""Whole runs through the command line, at toy scale: what they leave behind, and what they refuse."""

import json
import shutil
import time

import pytest

from imgsim.__main__ import main
from imgsim.runs import DEFAULTS, NOTEBOOKS, ROOT, check, replacing, run_name

KEYS = {
    *("schema", "dataset", "checkpoint", "dim", "hash_size", "num_tables", "probes", "seed", "dtype"),
    *("candidates", "queries"),
    *("exact_label_precision_at_5", "label_precision_at_5", "recall_at_10", "candidate_fraction", "compared_fraction"),
    *("participation_ratio", "embed_images_per_second", "build_seconds", "query_ms"),
}
TIMES = {"embed_images_per_second", "build_seconds", "query_ms"}


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory, image_folder, checkpoint):
    """Two runs of the same settings, none of them a default, from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    options = ["run", "--dataset", str(image_folder), "--checkpoint", str(checkpoint), "--output", str(folder)]
    options += ["--params", str(ROOT / "params" / "ci.yaml"), "--num-tables", "3"]
    metrics = []
    for _ in range(2):
        assert main(options) == 0
        metrics.append(json.loads((folder / "metrics.json").read_text()))
    return folder, metrics


def test_run_leaves_everything_it_promises(toy_run):
    folder, _ = toy_run
    expected = {f"{name}.ipynb" for name in NOTEBOOKS} | {"report.html", "figures", "index", "run.json", "metrics.json"}
    assert {path.name for path in folder.iterdir()} == expected
    assert not any(path.name.startswith(folder.name + ".") for path in folder.parent.iterdir())
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert settings["hash_size"] == 6 and settings["num_tables"] == 3  # from the file; from the option before it
    made_with = json.loads((folder / "index" / "manifest.json").read_text())["encoder"]
    assert (made_with["pooling"], made_with["dtype"]) == ("class token", "bfloat16")


def test_metrics_hold_every_key_and_repeat_but_for_times(toy_run):
    _, (first, second) = toy_run
    assert set(first) == KEYS and first["schema"] == 1
    assert (first["candidates"], first["queries"], first["hash_size"], first["num_tables"]) == (24, 9, 6, 3)
    assert {key: first[key] for key in KEYS - TIMES} == {key: second[key] for key in KEYS - TIMES}
    assert all(first[key] > 0 for key in TIMES)


def test_report_is_one_page_that_needs_no_network(toy_run):
    page = (toy_run[0] / "report.html").read_text(encoding="utf-8")
    assert "<math" in page and "$p^k$" not in page and page.count("data:image/png;base64,") >= 15
    assert 'src="http' not in page and "colab-badge" not in page
    for title in ("Embeddings", "Hashing", "Tables", "Inference"):
        assert title in page


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
        (["--hash-size", "0"], "hash_size is 0"),
        (["--hash-size", "65"], "hash_size is 65"),
        (["--num-tables", "0"], "num_tables is 0"),
        (["--top-k", "0"], "top_k is 0"),
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
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(options, named, tmp_path, draw, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "LONELY").mkdir()
    draw(0).save(tmp_path / "LONELY" / "only.png")
    (tmp_path / "MISSPELT").write_text("hash_sise: 8\n")
    (tmp_path / "WRONG").write_text("hash_size: '8'\n")
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    assert main(["run", *options, "--output", str(tmp_path / "out")]) == 1
    assert time.monotonic() - start < 10  # also where the Hub cannot be reached
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
    monkeypatch.setattr("imgsim.__main__.run", lambda settings, output: asked.append(settings["dataset"]) or tmp_path)
    params = tmp_path / "params.yaml"
    params.write_text("dataset: owner/name\n")
    options = ["--revision", "v1", "--split", "train", "--image-column", "img", "--label-column", "species"]
    assert main(["run", "--params", str(params), *options]) == 0
    assert main(["run", "--params", str(params)]) == 0
    assert asked == ["owner/name@v1?split=train&image=img&label=species", "owner/name"]


def test_checkpoint_called_075_stays_text(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("checkpoint: '075'\n")
    assert run_name(check({"checkpoint": "075"})) == "builtin-075-k8-L10-seed0"
    with pytest.raises(ValueError, match="checkpoint must be text, not 75"):
        check({"checkpoint": 75})
    assert set(check({})) == set(DEFAULTS)


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(ValueError, match="other files"), replacing(tmp_path):
        pass
    assert (tmp_path / "thesis.doc").exists()


def test_a_killed_run_is_cleared_away_and_what_it_meant_to_replace_is_kept(tmp_path):
    folder, before = tmp_path / "run", tmp_path / "run.before"
    folder.mkdir(), before.mkdir()
    (folder / "01_embeddings.ipynb").touch()  # half a run
    (before / "run.json").touch()  # the whole one that it would have replaced
    with pytest.raises(KeyboardInterrupt), replacing(folder):
        assert not any(folder.iterdir())
        raise KeyboardInterrupt
    assert (folder / "run.json").exists() and not before.exists()
