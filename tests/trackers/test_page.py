"""Where the tracker's web page is: found without MLflow, and with no password in it."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from savepoint import trackers
from savepoint.config import TrackerSettings
from savepoint.errors import ConfigError
from savepoint.trackers import Page

LOCAL = TrackerSettings(kind="mlflow", experiment="mine", uri="sqlite:///kept.db")


@pytest.fixture(autouse=True)
def no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_local_store_is_served_and_its_experiment_opened_for_training(tmp_path: Path) -> None:
    """tests/test_readme.py does it with a database that MLflow has made."""
    store = f"sqlite:///{(tmp_path / 'kept.db').as_posix()}"
    given = (f"tracker.uri={store}",)
    assert trackers.find_page(LOCAL, repository=tmp_path) == Page(store, None, "", given)
    assert list(tmp_path.iterdir()) == [], "asking makes no database"
    with contextlib.closing(sqlite3.connect(tmp_path / "kept.db")) as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        database.execute("INSERT INTO experiments VALUES (0, 'Default'), (7, 'mine')")
        database.commit()
    path = "#/experiments/7/runs?workflowType=machine_learning"
    assert trackers.find_page(LOCAL, repository=tmp_path) == Page(store, None, path, given)


def test_a_server_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@tracking.example:8000")
    assert trackers.find_page(LOCAL, repository=tmp_path) == Page(None, "https://tracking.example:8000/", "")


def test_without_a_tracker_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tracker=none has no web page\."):
        trackers.find_page(TrackerSettings(kind="none"), repository=tmp_path)
