"""Every command answers --help with its own usage, and exit code 0."""

import re

import pytest

from savepoint import __main__

COMMANDS = sorted({*re.findall(r"python -m savepoint ([\w-]+)", __main__.USAGE)})


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_command_says_how_it_is_used(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert __main__.main([verb, flag]) == 0
    except SystemExit as left:
        assert left.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: python -m savepoint {verb}"), said
    assert said.err == ""


@pytest.mark.parametrize("arguments", [["--port"], ["--port", "x"], ["latest"], ["--port", "1", "2"]], ids=" ".join)
def test_a_wrong_argument_of_ui_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["ui", *arguments]) == 2
    assert (
        capsys.readouterr().err == "error: usage: python -m savepoint ui [--port 5000] [tracker=aim] [tracker.uri=…]\n"
    )


def test_ui_of_a_server_that_runs_is_its_address(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert __main__.main(["ui", "tracker.uri=http://127.0.0.1:5999"]) == 0
    assert capsys.readouterr().out == "http://127.0.0.1:5999/\n"


def test_the_usage_of_one_command_has_nothing_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["verify", "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
