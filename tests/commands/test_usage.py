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


def test_the_usage_of_one_command_has_nothing_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["verify", "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
