"""The rendered leaves: the same pixels from the same seed, balanced classes, folders whole or not at all."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imgsim.sources import builtin
from imgsim.sources.builtin import CLASSES, SPLITS, render_folder
from imgsim.sources.leaves import render_leaf, sample_traits

SIZE = 48


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_folder(tmp_path_factory.mktemp("rendered") / "leaves", sizes={"train": 9, "test": 3}, size=SIZE)


def test_classes_and_splits_are_those_of_beans():
    assert CLASSES == ("angular_leaf_spot", "bean_rust", "healthy")
    assert SPLITS == {"train": 1034, "validation": 133, "test": 128}


def test_names_and_balance_of_a_rendered_folder(rendered):
    names = [f"{label}/{label}" for label in CLASSES]
    expected = {f"train/{name}_train.{i}.jpg" for name in names for i in range(3)}
    assert set(files(rendered)) == expected | {f"test/{name}_test.0.jpg" for name in names}


def test_rendered_leaves_are_small_rgb_photographs(rendered):
    for path in rendered.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.size == (SIZE, SIZE) and image.mode == "RGB"
            assert np.asarray(image).std() > 5  # something is to be seen


def test_no_two_leaves_are_the_same(rendered):
    contents = files(rendered).values()
    assert len(set(contents)) == len(contents)


def test_the_same_seed_renders_the_same_pixels_in_any_order_and_number(rendered, tmp_path):
    again = render_folder(tmp_path / "again", sizes={"test": 2, "train": 5}, size=SIZE)
    before, after = files(rendered), files(again)
    assert len(after) == 7 and all(before[name] == content for name, content in after.items())


DIGEST = """
import hashlib
import numpy as np
from imgsim.sources.leaves import render_leaf, sample_traits

digest = hashlib.md5()
for label, number in (("bean_rust", 1), ("healthy", 2)):  # with numpy's own float32 exp some pixels were others
    rng = np.random.default_rng([0, 0, number])
    digest.update(render_leaf(sample_traits(label, rng), rng).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_a_processor_without_avx_512_renders_the_same_pixels():
    older = "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"  # numpy's names by version
    command = [sys.executable, "-W", "ignore", "-c", DIGEST]
    environments = (os.environ, os.environ | {"NPY_DISABLE_CPU_FEATURES": older})
    digests = {subprocess.check_output(command, env=environment) for environment in environments}
    assert len(digests) == 1


def test_another_seed_renders_other_leaves(rendered, tmp_path):
    other = render_folder(tmp_path / "other", seed=1, sizes={"test": 1}, size=SIZE)
    assert all(files(rendered)[name] != content for name, content in files(other).items())


@pytest.mark.parametrize("label", CLASSES)
def test_only_the_severity_depends_on_the_class(label):
    for seed in range(20):
        traits = sample_traits(label, np.random.default_rng(seed))
        healthy = sample_traits("healthy", np.random.default_rng(seed))
        assert (traits.severity == 0) == (label == "healthy") and traits.severity <= 1
        assert vars(healthy) == vars(traits) | {"label": "healthy", "severity": 0}


def test_the_three_classes_look_different():
    pixels = []
    for label in CLASSES:
        traits = sample_traits(label, np.random.default_rng(3))
        pixels.append(np.asarray(render_leaf(traits, np.random.default_rng(4), SIZE)).astype(int))
    for i in range(3):
        assert np.abs(pixels[i] - pixels[i - 1]).mean() > 1


def test_an_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fail_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render_leaf(*args)

    monkeypatch.setattr(builtin, "render_leaf", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        render_folder(tmp_path / "leaves", sizes={"train": 6}, size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gone", ["*/*/*_train.1.jpg", "test"])
def test_leaves_of_which_some_are_gone_are_rendered_again(gone, tmp_path, monkeypatch):
    monkeypatch.setenv("IMGSIM_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin, "SPLITS", {"train": 6, "test": 3})
    render = lambda folder: render_folder(folder, sizes={"train": 6, "test": 3}, size=SIZE)  # noqa: E731
    monkeypatch.setattr(builtin, "render_folder", render)
    folder = builtin.builtin_folder()
    whole = sorted(folder.rglob("*.jpg"))
    for path in folder.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / f".{folder.name}-killed").mkdir()
    assert sorted(builtin.builtin_folder().rglob("*.jpg")) == whole and len(whole) == 9
    assert not list(tmp_path.glob(".*-*"))


def test_a_folder_that_is_there_is_kept(tmp_path):
    target = tmp_path / "leaves"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    assert render_folder(target, sizes={"train": 2}, size=SIZE) == target
    assert [path.name for path in target.iterdir()] == ["mine.txt"] and list(tmp_path.iterdir()) == [target]
