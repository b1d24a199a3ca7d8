"""How errors come out of a command."""

from __future__ import annotations

import pytest
from torch._utils import ExceptionWrapper

from cakdp_ext.config import ConfigError
from cakdp_ext.engine.cli import one_line, run_command


@pytest.mark.parametrize("error", [ConfigError("a.yaml: wrong; do this"), FileNotFoundError("no file ValueError: x")])
def test_error_of_a_loader_process_loses_its_wrapping(error):
    try:
        raise error from KeyError("what was behind it")
    except type(error):
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error), match="Traceback") as caught:
        wrapped.reraise()
    assert one_line(caught.value) == str(error)


def test_error_of_several_lines_comes_out_in_one():
    assert one_line(ValueError("first\nsecond")) == "first second"
    assert one_line(ValueError("")) == ""


def test_debugging_shows_where_an_error_came_from(monkeypatch):
    def fail(argv):
        raise ConfigError("wrong")

    assert run_command(fail, []) == 2
    monkeypatch.setenv("CAKDP_DEBUG", "1")
    with pytest.raises(ConfigError, match="wrong"):
        run_command(fail, [])


def test_a_mistake_of_the_program_is_not_hidden():
    def fail(argv):
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        run_command(fail, [])


def test_interrupting_says_how_to_go_on(capsys):
    def stop(argv):
        raise KeyboardInterrupt

    assert run_command(stop, []) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
