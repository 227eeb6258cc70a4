"""`python -m savepoint ls`: a row for each run, right to the last digit or empty, and one line for what it cannot do."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tools.listed import GIT, in_training, listed, save

from savepoint import __main__, checkpoint, trust
from savepoint.checkpoint.storage import NAME
from savepoint.commands import overview, tables


def ids(text: str) -> list[str]:
    return [row["id"] for row in json.loads(text)]


def test_without_runs_it_says_how_to_start_one(repository: Path, said: Any) -> None:
    assert said("ls") == f"There are no runs yet under {repository}. Start one: python train.py\n"
    assert said("ls", "--json") == "[]\n"


def test_a_row_has_what_the_newest_checkpoint_says(repository: Path, said: Any) -> None:
    one = listed(
        repository, "aaaa0001", "model=cnn", "optimizer.lr=0.01", "tracker=none", "checkpoint.keep_last=9", name="base"
    )
    for epoch in (9, 10, 100):
        save(one, epoch, 1 / epoch)
    listed(repository, "bbbb0002", "seed=1", "scheduler=none", "~init", number=1, status="failed", parents=["aaaa0001"])
    assert said("ls").splitlines() == [
        "id        name  choices                      status    epoch  best val/loss  started           commit    parents",
        "aaaa0001  base  cnn lr=0.01                  finished    100           0.01  2026-01-01 12:00  5f5f5f5+",
        "bbbb0002        seed=1 scheduler=none ~init  failed                          2026-01-01 12:01            aaaa0001",
    ]


def test_json_has_the_documented_keys(repository: Path, said: Any) -> None:
    one = listed(
        repository, "aaaa0001", "model=cnn", "tracker=none", name="base", sweep="ab12cd34", parents=["bbbb0002"]
    )
    save(one, 2, 0.1234567890123456)
    (row,) = json.loads(said("ls", "--json"))
    assert row == {
        "id": "aaaa0001",
        "name": "base",
        "directory": str(one.directory),
        "choices": "cnn",
        "overrides": ["model=cnn", "tracker=none"],
        "status": "finished",
        "checkpoint": "epoch_0002_step_00000046",
        "epoch": 2,
        "step": 46,
        "best": {"metric": "val/loss", "value": 0.1234567890123456, "epoch": 2, "step": 46},
        "started": "2026-01-01T12:00:00.000000+00:00",
        "commit": GIT["commit"],
        "dirty": True,
        "parents": ["bbbb0002"],
        "sweep": "ab12cd34",
    }
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    assert not [key for key in row if f"`{key}`" not in page]


def test_a_running_run_without_a_process_was_killed(repository: Path, said: Any) -> None:
    dead, alive = (listed(repository, f"{name}{name}{name}{name}0001", status="running") for name in "ab")
    listed(repository, "cccc0001", status="running").directory.joinpath(".lock").unlink()
    with in_training(alive):
        shown = {row["id"]: row["status"] for row in json.loads(said("ls", "--json"))}
        assert shown == {dead.id: "killed", alive.id: "running", "cccc0001": "killed"}
        assert ids(said("ls", "--json", "status=killed")) == [dead.id, "cccc0001"]
    assert ids(said("ls", "--json", "status=running")) == []


def test_asking_for_the_lock_takes_nothing_and_makes_nothing(repository: Path, said: Any) -> None:
    """A lock that was taken for a moment would refuse whoever resumes the run in that moment."""
    one = listed(repository, "aaaa0001", status="running")
    (one.directory / ".lock").unlink()
    said("ls")
    assert not (one.directory / ".lock").exists()


def test_the_newest_run_is_last_and_a_sort_key_changes_that(repository: Path, said: Any) -> None:
    for number, (name, loss) in enumerate([("cccc0001", 0.5), ("aaaa0001", 0.25), ("bbbb0001", 0.75)]):
        save(listed(repository, name, number=2 - number), 3 - number, loss)
    listed(repository, "dddd0001", number=9)
    assert ids(said("ls", "--json")) == ["bbbb0001", "aaaa0001", "cccc0001", "dddd0001"]
    assert ids(said("ls", "--json", "--sort", "best")) == ["dddd0001", "aaaa0001", "cccc0001", "bbbb0001"]
    assert ids(said("ls", "--json", "--sort=epoch")) == ["dddd0001", "bbbb0001", "aaaa0001", "cccc0001"]
    assert ids(said("ls", "--json", "--sort=id")) == ["aaaa0001", "bbbb0001", "cccc0001", "dddd0001"]


@pytest.mark.parametrize(
    "filters, found",
    [
        ("model=cnn", "ab"),  # typed, and by the class that a config names
        ("model=mlp", "c"),
        ("model=c*", "ab"),
        ("optimizer=adamw", "abc"),
        ("optimizer.lr=5e-3", "abc"),
        ("optimizer.lr=0.01", ""),
        ("model.channels=[8,8]", "abc"),
        ("trainer.patience=null", "abc"),
        ("optimizer.amsgrad=false", "abc"),
        ("optimizer.amsgrad=0", ""),
        ("seed=0", "bc"),
        ("seed=1", "a"),
        ("name=base", "b"),
        ("name=b*", "b"),
        ("status=failed", "c"),
        ("BASE", "b"),
        ("aaaa", "a"),
        ("model=cnn seed=1", "a"),
    ],
)
def test_filters_look_at_what_was_typed_and_at_the_config(
    repository: Path, said: Any, filters: str, found: str
) -> None:
    listed(repository, "aaaa0001", "model=cnn", "seed=1", number=0)
    listed(repository, "bbbb0001", name="base", number=1)
    listed(repository, "cccc0001", "model=mlp", number=2, status="failed")
    assert [each[0] for each in ids(said("ls", "--json", *filters.split()))] == [*found]


def test_free_text_is_searched_in_what_was_typed(repository: Path, said: Any) -> None:
    listed(repository, "aaaa0001", "optimizer.lr=0.01")
    listed(repository, "bbbb0001", number=1)
    assert ids(said("ls", "--json", "OPTIMIZER.lr")) == ["aaaa0001"]
    assert said("ls", "nowhere") == "None of 2 runs matches nowhere.\n"


def test_a_sweep_is_named_by_id_prefix_or_directory(repository: Path, said: Any) -> None:
    place = "sweeps/2026-01-01/120000-ab12cd34"
    for number in range(3):
        listed(repository, f"aaaa000{number}", number=number, place=place, sweep="ab12cd34")
    listed(repository, "bbbb0001", place="sweeps/2026-01-01/130000-ab99cd34", sweep="ab99cd34")
    listed(repository, "cccc0001", number=9)
    jobs = ["aaaa0000", "aaaa0001", "aaaa0002"]
    for query in ("ab12cd34", "ab1", str(repository / place)):
        assert ids(said("ls", "--json", "--sweep", query)) == jobs
    elsewhere = repository / "elsewhere"
    shutil.move(repository / place, elsewhere)
    assert ids(said("ls", "--json", "--sweep", str(elsewhere))) == jobs


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--sort speed", "--sort speed: there are started, id, name, choices, status, epoch, best, commit."),
        (
            "--sort",
            "--sort needs a value. usage: python -m savepoint ls [text|key=value …] [--sweep SWEEP] [--sort KEY] [--json]",
        ),
        (
            "--fast",
            "ls has no option --fast. usage: python -m savepoint ls [text|key=value …] [--sweep SWEEP] [--sort KEY] [--json]",
        ),
        ("status=done", "status=done: there are running, finished, interrupted, failed, killed."),
        (
            "optimizer.rl=1",
            "optimizer.rl=1: no run has the key optimizer.rl. Did you mean optimizer.lr? There are the keys of the configs, and model, name, optimizer.lr, status.",
        ),
        ("--sweep zz", "--sweep zz: no run is of such a sweep. The newest sweeps: ab99cd34, ab12cd34."),
        ("--sweep ab", "--sweep ab could be any of ab99cd34, ab12cd34. Give more characters."),
    ],
)
def test_what_does_not_exist_is_one_line_that_says_what_does(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    listed(repository, "aaaa0001", "model=cnn", "optimizer.lr=0.01", sweep="ab12cd34")
    listed(repository, "bbbb0001", number=1, sweep="ab99cd34")
    assert __main__.main(["ls", *arguments.split()]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_a_directory_without_jobs_is_no_sweep(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["ls", "--sweep", str(repository)]) == 2
    assert capsys.readouterr().err == f"error: --sweep {repository}: no run of a sweep lies in this directory.\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"best": 3}',
        '{"best": {"metric": "val/loss", "value": "0.1", "epoch": 1, "step": 1}}',
        '{"best": {"metric": "val/loss", "value": {"$float": "nan"}, "epoch": 1, "step": 1}}',
        '{"best": {"metric": "val/loss", "value": 0.5, "epoch": 1}}',
        '{"best": null}',
    ],
)
def test_a_best_value_that_may_be_wrong_is_not_shown(repository: Path, said: Any, text: str) -> None:
    path = save(listed(repository, "aaaa0001"), 1, 0.5)
    (path / "state.json").write_text(text)
    (path / "provenance.json").write_text(text)
    (row,) = json.loads(said("ls", "--json"))
    assert (row["epoch"], row["best"], row["commit"], row["dirty"]) == (1, None, None, None)
    assert "aaaa0001  finished      1  2026" in said("ls")


def test_an_infinite_best_value_is_shown(repository: Path, said: Any) -> None:
    save(listed(repository, "aaaa0001"), 1, 0.5, best={"metric": "m", "value": float("-inf"), "epoch": 1, "step": 23})
    assert json.loads(said("ls", "--json"))[0]["best"]["value"] == "-inf"
    assert "  -inf  " in said("ls")


def test_metrics_of_two_names_each_have_theirs(repository: Path, said: Any) -> None:
    save(listed(repository, "aaaa0001"), 1, 0.5)
    save(listed(repository, "bbbb0001"), 1, 0.5, best={"metric": "val/auc", "value": 1, "epoch": 1, "step": 23})
    shown = said("ls")
    assert "  val/loss 0.5  " in shown and "     val/auc 1  " in shown and re.search(" best +started", shown)


def test_a_strangers_text_cannot_move_the_cursor(repository: Path, said: Any) -> None:
    listed(repository, "aaaa0001", "model=\x1b[2Jcnn", name="\x1b[31mred\n")
    shown = said("ls")
    assert "\x1b" not in shown and "\\x1b[31mred" in shown and shown.count("\n") == 2


def test_a_terminal_gets_a_table_and_the_whole_id(repository: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(repository, "aaaa0001", "model.channels=[8,8]", name="[red]a name[/red]")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    shown = said("ls")
    assert "aaaa0001" in shown and "channels=[8,8]" in shown and "[red]a name[/red]" in shown and "─" in shown
    monkeypatch.setenv("COLUMNS", "40")
    assert "aaaa0001" in said("ls")
    monkeypatch.setattr(tables, "MOST_ROWS", 0)
    assert max(map(len, said("ls").splitlines())) == 40


def test_the_name_of_a_checkpoint_has_one_rule() -> None:
    assert overview._NAME.pattern == NAME.pattern
    assert checkpoint.position("epoch_0100_step_00000230") == (230, 100)


def test_a_value_is_read_from_the_beginning_of_a_file_only_if_it_is_there_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for values in (
        {"a": {"best": 1}, "best": 2.5},
        {"best": 12345},
        {"a": "x" * 5000, "best": {"b": [1, "best"]}},
        {'q"best': 1, "best": 2},
    ):
        for indent in (None, 1):
            path.write_text(json.dumps(values, indent=indent))
            assert trust.read_member(str(path), "best") == values["best"]
            assert trust.read_member(str(path), "none") is None
    for padding in range(4060, 4100):  # the file is cut inside of the number, before it, after it
        path.write_text('{"a": "%s", "best": 12345}' % ("x" * padding))
        assert trust.read_member(str(path), "best") == 12345
