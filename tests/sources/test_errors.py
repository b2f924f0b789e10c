"""Errors in one line, with a command that works."""

import pytest

from imgsim.sources.errors import require


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
