"""Fixtures of the commands that look at runs."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from savepoint import __main__


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, which the command line takes for its own, where it is always UTC."""
    monkeypatch.setattr(__main__, "REPOSITORY", tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for group in ("model", "optimizer", "scheduler"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, once it has ended well."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert __main__.main([*arguments]) == 0
        return capsys.readouterr().out

    return run
