"""A run's directory and identity, and the words that find it."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from savepoint import runs, system
from savepoint.errors import UserError
from savepoint.runs import directory as module


def create(directory: Path, id: str = "ab12cd34", **values: object) -> runs.Run:
    return runs.create(directory, id=id, name=None, config="seed: 0\n", overrides=[], **values)


def test_ids_are_unique_and_never_a_number_to_yaml() -> None:
    ids = {runs.new_id() for _ in range(5000)}
    assert len(ids) == 5000 and all(len(each) == 8 and each[0].isalpha() for each in ids)


def test_created_run_is_read_back(tmp_path: Path) -> None:
    made = create(tmp_path / "deep" / "run", sweep="s1", forked_from={"run": "p1", "checkpoint": "c", "sha256": "0"})
    record = runs.read(made.directory).record
    assert record == made.record and (record["status"], record["tracker"]) == ("running", None)
    assert (record["sweep"], record["parents"]) == ("s1", ["p1"])
    assert sorted(path.name for path in made.directory.iterdir()) == ["config.yaml", "run.json"]


def test_run_json_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(system.files, "replace", lambda path, data: written.append(path.name))
    create(tmp_path)
    assert written == ["config.yaml", "run.json"]


def test_directory_that_holds_a_run_or_checkpoints_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        create(tmp_path / "run")
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints, but no run\.json"):
        create(tmp_path / "other")


def test_discarded_run_leaves_what_was_there_before(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "2026-01-01" / "000000-ab12cd34"
    runs.discard(create(directory))
    assert list(tmp_path.iterdir()) == []
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("mine")
    runs.discard(create(directory))
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


def test_date_directory_of_another_run_is_kept(tmp_path: Path) -> None:
    date = tmp_path / "runs" / "2026-01-01"
    create(date / "000000-aaaa1111", "aaaa1111")
    runs.discard(create(date / "000000-bbbb2222", "bbbb2222"))
    assert [path.name for path in date.iterdir()] == ["000000-aaaa1111"]


def test_lock_is_for_one_process_and_ends_with_it(tmp_path: Path) -> None:
    made = create(tmp_path)
    code = """if True:
        import sys, time
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from savepoint import runs
        lock = runs.read(Path(sys.argv[2])).hold()
        print("held", flush=True)
        time.sleep(60)
    """
    source = str(Path(module.__file__).parents[2])
    other = subprocess.Popen([sys.executable, "-c", code, source, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="Run ab12cd34 is being trained by another process"):
        made.hold()
    other.kill()
    other.wait()
    other.stdout.close()
    made.hold().release()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": 5}', '{"id": "abcd0001", "name": null}', "\0"])
def test_record_that_cannot_be_read_is_told_and_left_out(tmp_path: Path, text: str) -> None:
    good = create(tmp_path / "runs" / "d" / "good")
    bad = tmp_path / "runs" / "d" / "bad"
    bad.mkdir()
    (bad / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        runs.read(bad)
    assert [each.directory for each in runs.all_runs(tmp_path)] == [good.directory]


def test_latest_is_the_newest_by_its_start(tmp_path: Path) -> None:
    for name, started in (("a", "2026-01-02"), ("b", "2026-01-03"), ("c", "2026-01-01")):
        create(tmp_path / "runs" / "d" / name, name * 8).update(started=started)
    create(tmp_path / "sweeps" / "d" / "s" / "0", "eeee0000").update(started="2026-01-02T12")
    assert [each.id[0] for each in runs.all_runs(tmp_path)] == ["c", "a", "e", "b"]
    assert runs.find("latest", tmp_path) == runs.Found(runs.find("bbbb", tmp_path).run, None)


def test_existing_path_is_taken_whole_before_the_at_sign(tmp_path: Path) -> None:
    odd = create(tmp_path / "name@best")
    assert runs.find(str(odd.directory), tmp_path).checkpoint is None
    found = runs.find(f"{odd.directory}@epoch_0001_step_00000004", tmp_path)
    assert (found.run.directory, found.checkpoint) == (odd.directory, "epoch_0001_step_00000004")


def test_exact_id_wins_over_a_longer_one_that_begins_with_it(tmp_path: Path) -> None:
    for name in ("abcd", "abcd1234"):
        create(tmp_path / "runs" / "d" / name, name)
    assert runs.find("abcd", tmp_path).run.id == "abcd"


def test_address_is_what_finds_the_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ["runs/d/one", "sweeps/d/s/0", "runs/two", "elsewhere/a b"]
    made = [create(tmp_path / place, f"{number}aaaaaaa") for number, place in enumerate(places)]
    assert [one.address(tmp_path) for one in made[:2]] == ["0aaaaaaa", "1aaaaaaa"]
    assert made[2].address(tmp_path) == f"{tmp_path}/runs/two"
    assert made[3].address(tmp_path) == f"'{tmp_path}/elsewhere/a b'"
    for one in made:
        assert runs.find(one.address(tmp_path).strip("'"), tmp_path).run.id == one.id


def test_what_a_killed_process_left_of_a_runs_files_is_removed_by_the_next(tmp_path: Path) -> None:
    made = create(tmp_path)
    for name in (".run.json.123.tmp", ".metrics.jsonl.123.tmp", ".config.yaml.123.tmp"):
        (tmp_path / name).write_text("torn")
    (tmp_path / ".mine.tmp").write_text("a person's")
    made.hold().release()
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [".mine.tmp"]


def test_start_that_the_disk_refuses_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: runs.Run, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.Run, "update", full)
    with pytest.raises(OSError, match="No space"):
        create(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tracker_id_that_does_not_fit_on_the_disk_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = create(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(system.files, "replace", full)
        made.note_tracker("mlflow", "0123456789abcdef")
    made.update(status="finished")
    assert json.loads((tmp_path / "run.json").read_bytes())["tracker"] == {
        "kind": "mlflow",
        "run_id": "0123456789abcdef",
    }
