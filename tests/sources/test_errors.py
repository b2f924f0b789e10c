"""Errors in one line, with a command that works."""

import pytest

from imgsim.sources.errors import require, say


def test_what_is_installed_is_not_asked_for():
    require(("json", "numpy"), "any")


@pytest.mark.parametrize(
    ("modules", "command"),
    [(("json", "nosuchmodule"), "pip install nosuchmodule"), (("ray", "gradio"), 'pip install "ray[data]" gradio')],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(modules, command, monkeypatch, refused):
    monkeypatch.setattr("imgsim.sources.errors.find_spec", lambda name: name if name == "json" else None)
    with refused(command):
        require(modules, "some")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "The disk is full: make room on it"),
        (OSError(122, "Disk quota exceeded"), "The disk is full: make room on it"),
        (FileNotFoundError(2, "No such file or directory"), "The folder that this was started in is gone"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "[Errno 2] No such file or directory: 'a.txt'"),
        (ValueError("first\nsecond"), "first"),
        (RuntimeError(), "stopped by RuntimeError"),
    ],
)
def test_an_error_is_said_in_one_line(error, said):
    assert say(error).startswith(said) and "\n" not in say(error)
