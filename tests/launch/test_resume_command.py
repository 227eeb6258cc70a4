"""resume.py, run as a person runs it: which run it finds, what it refuses, and what it survives."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.processes import Ended, command
from tools.workshop import Workshop

from savepoint import checkpoint, runs
from savepoint.commands import diff
from savepoint.runs import history

QUICK = (
    "tracker=none",
    "trainer.threads=1",
    "data.limit_batches=4",
    "data.batch_size=32",
    "trainer.log_every_n_steps=3",
)
TWO, FOUR = ("trainer.max_epochs=2",), ("trainer.max_epochs=4",)
NAMES = [f"epoch_{epoch:04d}_step_{4 * epoch:08d}" for epoch in range(5)]


@pytest.fixture(scope="session")
def finished(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of 2 and of 4 epochs that nothing interrupted; every checkpoint is kept. For tests to copy."""
    made = {}
    for epochs in (2, 4):
        made[epochs] = tmp_path_factory.mktemp("finished") / "run"
        arguments = (*QUICK, f"trainer.max_epochs={epochs}", "checkpoint.keep_last=9", f"hydra.run.dir={made[epochs]}")
        ended = the_workshop.run("train.py", *arguments)
        assert ended.status == 0, ended.output
    return made


@pytest.fixture
def directory(finished: dict[int, Path], tmp_path: Path) -> Path:
    """A finished run of 4 epochs, of one's own."""
    shutil.copytree(finished[4], tmp_path / "run")
    return tmp_path / "run"


def resumed(workshop: Workshop, directory: Path, *changes: str) -> Ended:
    ended = workshop.run("resume.py", f"run={directory}", *changes)
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    return ended


def refused(workshop: Workshop, *arguments: str) -> str:
    """The one line that is told."""
    ended = workshop.run("resume.py", *arguments)
    assert ended.status == 2, ended.output
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in ended.output, ended.output
    return errors[0]


def contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name not in (".lock", "train.log")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def undo(directory: Path, *, epochs: int) -> None:
    """Make it look as if the run had been killed right after that epoch's checkpoint."""
    for name in NAMES[epochs + 1 :]:
        shutil.rmtree(directory / "checkpoints" / name)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file of a checkpoint, and its manifest with it, as somebody who means harm would."""
    path.write_bytes(change(path.read_bytes()))
    manifest = json.loads((path.parent / "manifest.json").read_bytes())
    data = path.read_bytes()
    manifest["files"][path.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


# Which run


@pytest.fixture
def two_runs(workshop: Workshop, finished: dict[int, Path]) -> dict[str, Path]:
    """Two finished runs under runs/, whose ids begin alike, and whose tracker ids do not."""
    places = {}
    for number, (epochs, source) in enumerate(finished.items(), start=1):
        place = workshop.root / "runs" / "2026-01-01" / f"00000{number}-abcd000{epochs}"
        shutil.copytree(source, place)
        tracker = {"kind": "mlflow", "run_id": f"{epochs}12345deadbeef"}
        runs.read(place).update(id=f"abcd000{epochs}", started=f"2026-01-0{number}", tracker=tracker)
        places[f"abcd000{epochs}"] = place
    return places


def test_run_is_found_by_every_word_of_the_design(workshop: Workshop, two_runs: dict[str, Path]) -> None:
    older, newer = two_runs.values()
    of_newer = ["abcd0004", str(newer), str(newer / "checkpoints" / NAMES[4]), "latest", "latest@last"]
    of_newer += [f"abcd0004@{NAMES[4]}", "abcd0004@16", f"{newer}@16", "412345deadbeef", "412345", "412345@last"]
    of_older = ["abcd0002", "abcd0002@8", "212345", str(older / "checkpoints" / NAMES[2])]
    for expected, texts in (("abcd0004", of_newer), ("abcd0002", of_older)):
        for text in texts:
            ended = workshop.run("resume.py", f"run={text}")
            assert ended.status == 0 and f"run {expected} " in ended.output, (text, ended.output)


def test_word_that_means_no_run_or_several_is_told_in_one_line(workshop: Workshop, two_runs: dict[str, Path]) -> None:
    newer = two_runs["abcd0004"]
    shutil.copytree(newer, newer.with_name("000009-copied"))
    cases = {
        "run=abcd": "abcd could be any of abcd0004, abcd0002",
        "run=abc": "The id abc is too short. Give at least 4 characters of it.",
        "run=21234": "No run 21234. The newest are abcd0004",
        "run=123e4567": "No run 123e4567.",
        "run=a(1)=b": "No run a(1)=b.",
        "run=": "Which run? Give its id, a run directory, or latest",
        "seed=1": "Which run? usage: python resume.py run=",
        "run=abcd0002@": "nothing follows the @",
        "run=abcd0002@77": "No checkpoint @77. There are: epoch_0002_step_00000008, epoch_0001_step_00000004.",
        "run=abcd0004": "Run abcd0004 has been copied. Give one of its directories:",
        f"run={workshop.root / 'conf'}": "is neither a run (it has no run.json) nor a checkpoint",
    }
    for text, told in cases.items():
        assert told in refused(workshop, text), text
    assert "--now: resume.py has no such option" in refused(workshop, "run=latest", "--now")


def test_help_says_how(workshop: Workshop) -> None:
    ended = command(str(workshop.root / "resume.py"), "--help")
    assert ended.status == 0 and "usage: python resume.py run=" in ended.output


@pytest.mark.parametrize(
    ("typed", "offered", "withheld"),
    [
        ("", ["run=", "--force", "optimizer="], []),
        ("run=", ["run=latest", "run=abcd0004", "run=abcd0002"], ["optimizer="]),
        ("run=abcd0004", ["run=abcd0004"], ["run=abcd0002", "run=latest"]),
        ("run=latest optimizer=ad", ["optimizer=adam", "optimizer=adamw"], ["optimizer=sgd", "run="]),
        ("run=latest trainer.max", ["trainer.max_epochs="], ["run="]),
        ("run=latest --s", ["--same-code"], ["--force"]),
    ],
)
def test_the_command_line_is_completed(
    workshop: Workshop, two_runs: dict[str, Path], typed: str, offered: list[str], withheld: list[str]
) -> None:
    # The test's own process of another program: COMP_LINE is what the shell would set.
    environment = os.environ | {"COMP_LINE": f"python resume.py {typed}"}
    arguments = [sys.executable, str(workshop.root / "resume.py"), "-sc", "query=bash"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert set(offered) <= set(words) and not set(withheld) & set(words), (typed, done.stdout, done.stderr)


# What is the same run


def test_an_override_that_cannot_be_is_refused_and_changes_nothing(workshop: Workshop, directory: Path) -> None:
    undo(directory, epochs=2)
    before = contents(directory)
    assert "trainer.max_epoch=9" in refused(workshop, f"run={directory}", "trainer.max_epoch=9")
    assert "trainer.max_epochs=0" in refused(workshop, f"run={directory}", "trainer.max_epochs=0")
    assert "this machine has" in refused(workshop, f"run={directory}", "trainer.device=cuda:99")
    assert contents(directory) == before


def test_the_same_value_is_no_change(workshop: Workshop, directory: Path) -> None:
    resumed(workshop, directory, "seed=0", "optimizer.lr=0.005", "data.batch_size=32")


@pytest.mark.parametrize("schedule", [(), ("scheduler=step", "scheduler.step_size=1")], ids=["none", "step"])
def test_extended_run_equals_one_planned_that_long(
    workshop: Workshop, finished: dict[int, Path], tmp_path: Path, schedule: tuple[str, ...]
) -> None:
    whole, extended = finished[4], tmp_path / "extended"
    if schedule:
        whole = tmp_path / "whole"
        assert workshop.run("train.py", *QUICK, *schedule, *FOUR, f"hydra.run.dir={whole}").status == 0
    assert workshop.run("train.py", *QUICK, *schedule, *TWO, f"hydra.run.dir={extended}").status == 0
    resumed(workshop, extended, *FOUR)
    assert diff.diff_runs(runs.read(whole), runs.read(extended)) == []
    assert "max_epochs: 4" in (extended / "config.yaml").read_text()


def test_run_that_ended_within_an_epoch_extends_to_the_same_bits(workshop: Workshop, tmp_path: Path) -> None:
    config = (*QUICK, "trainer.max_epochs=null", "trainer.accumulate=3")
    for name, steps in (("whole", 7), ("extended", 3)):
        arguments = (*config, f"trainer.max_steps={steps}", f"hydra.run.dir={tmp_path / name}")
        assert workshop.run("train.py", *arguments).status == 0
    resumed(workshop, tmp_path / "extended", "trainer.max_steps=7")
    assert diff.diff_runs(runs.read(tmp_path / "whole"), runs.read(tmp_path / "extended")) == []


def test_schedule_planned_from_the_end_keeps_the_end(workshop: Workshop, tmp_path: Path) -> None:
    for schedule, key in (("cosine", "T_max"), ("onecycle", "total_steps"), ("warmup_cosine", "total_steps")):
        directory = tmp_path / schedule
        assert workshop.run("train.py", *QUICK, *TWO, f"scheduler={schedule}", f"hydra.run.dir={directory}").status == 0
        before = contents(directory)
        told = refused(workshop, f"run={directory}", *FOUR)
        assert f"scheduler.{key} was planned as 8 steps" in told
        line = f"resume.py run={directory} scheduler.{key}=16 trainer.max_epochs=4"
        assert told.endswith(line)
        assert contents(directory) == before
        _, *typed = line.split()
        forked = workshop.run("resume.py", *typed, f"hydra.run.dir={tmp_path / 'forked' / schedule}")
        assert forked.status == 0 and f"scheduler.{key} " in forked.output, forked.output
    # A length that was given is nobody's plan.
    given = ("scheduler=cosine", "scheduler.T_max=16")
    for name, epochs in (("whole", FOUR), ("given", TWO)):
        assert workshop.run("train.py", *QUICK, *epochs, *given, f"hydra.run.dir={tmp_path / name}").status == 0
    resumed(workshop, tmp_path / "given", *FOUR)
    assert diff.diff_runs(runs.read(tmp_path / "whole"), runs.read(tmp_path / "given")) == []


def test_finished_run_says_where_it_ended_and_how_to_go_on(workshop: Workshop, directory: Path) -> None:
    before = contents(directory / "checkpoints") | {"": (directory / "metrics.jsonl").read_bytes()}
    ended = resumed(workshop, directory)
    assert f"resumed from {NAMES[4]}: epoch 4, step 16" in ended.output
    assert f"to go on: python resume.py run={directory} trainer.max_epochs=8" in ended.output
    assert before == contents(directory / "checkpoints") | {"": (directory / "metrics.jsonl").read_bytes()}
    assert runs.read(directory).record["status"] == "finished"


def test_settings_that_leave_the_result_alone_may_change(
    workshop: Workshop, finished: dict[int, Path], directory: Path
) -> None:
    undo(directory, epochs=1)
    changes = ("data.num_workers=2", "data.prefetch=3", "checkpoint.keep_last=1", "checkpoint.every_n_steps=1")
    resumed(workshop, directory, *changes, "name=renamed")
    assert diff.diff_runs(runs.read(finished[4]), runs.read(directory)) == []
    assert runs.read(directory).record["name"] == "renamed"


def test_history_of_a_resumed_run_has_every_point_once(
    workshop: Workshop, finished: dict[int, Path], directory: Path
) -> None:
    undo(directory, epochs=1)
    with open(directory / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 17, "epo')  # torn by a kill
    resumed(workshop, directory)
    lines = history.read_history(directory / "metrics.jsonl")
    assert [(line["step"], line["epoch"]) for line in lines] == [
        (line["step"], line["epoch"]) for line in history.read_history(finished[4] / "metrics.jsonl")
    ]
    assert diff.diff_runs(runs.read(finished[4]), runs.read(directory)) == []


def test_what_changed_is_told_in_a_line_for_each(workshop: Workshop, directory: Path) -> None:
    undo(directory, epochs=3)
    rewrite(
        directory / "checkpoints" / NAMES[3] / "provenance.json",
        lambda data: json.dumps(json.loads(data) | {"git": {"commit": "0123456789abcdef"}}).encode(),
    )
    ended = resumed(workshop, directory, "trainer.threads=2")
    told = [line for line in ended.output.splitlines() if line.startswith("changed since that checkpoint, so ")]
    assert [line.partition(", so ")[2] for line in told] == [
        "results may differ: git commit 0123456789 → none",
        "bits may differ: threads 1 → 2",
    ]


def test_other_code_is_refused_where_the_same_is_asked_for(workshop: Workshop, directory: Path) -> None:
    undo(directory, epochs=3)
    assert workshop.run("resume.py", f"run={directory}", "--same-code").status == 0
    undo(directory, epochs=2)
    (directory / "checkpoints" / NAMES[2] / "changes.patch").write_text("")
    rewrite(directory / "checkpoints" / NAMES[2] / "changes.patch", lambda _: b"+a line\n")
    before = contents(directory)
    told = refused(workshop, f"run={directory}", "--same-code")
    assert "--same-code: the code is not that of epoch_0002_step_00000008: uncommitted changes 1 lines → none." in told
    assert contents(directory) == before


def test_threads_are_those_of_the_checkpoint(workshop: Workshop, directory: Path) -> None:
    newest = directory / "checkpoints" / NAMES[4]
    rewrite(newest / "config.yaml", lambda data: data.replace(b"threads: 1", b"threads: null"))
    shutil.copy(newest / "config.yaml", directory)
    rewrite(newest / "provenance.json", lambda data: data.replace(b'"threads": 1', b'"threads": 3'))
    assert "(3 threads)" in resumed(workshop, directory).output


# Damage, and moves


def flip(path: Path) -> None:
    data = bytearray((path / "training.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "training.safetensors").write_bytes(data)


def remove(path: Path) -> None:
    (path / "state.json").unlink()


def truncate(path: Path) -> None:
    with open(path / "model.safetensors", "r+b") as file:
        file.truncate(1000)


DAMAGE = {
    "a flipped bit": (flip, "training.safetensors: its SHA-256 is not the manifest's"),
    "a missing file": (remove, "missing state.json"),
    "a torn file": (truncate, "model.safetensors: 1000 bytes, and the manifest says"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoint_is_named_set_aside_and_fallen_back_from(
    workshop: Workshop, finished: dict[int, Path], directory: Path, name: str
) -> None:
    harm, told = DAMAGE[name]
    harm(directory / "checkpoints" / NAMES[4])
    harm(directory / "checkpoints" / NAMES[3])
    ended = resumed(workshop, directory)
    lines = [line for line in ended.output.splitlines() if line.startswith("damaged, now .damaged-")]
    assert len(lines) == 2 and all(told in line for line in lines), ended.output
    assert f"resumed from {NAMES[2]}" in ended.output
    assert diff.diff_runs(runs.read(finished[4]), runs.read(directory)) == []
    aside = {path.name for path in (directory / "checkpoints").glob(".*")}
    assert aside == {f".damaged-{NAMES[3]}", f".damaged-{NAMES[4]}"}


def test_run_whose_checkpoints_are_all_damaged_is_refused_in_one_line_and_stays_as_it_is(
    workshop: Workshop, finished: dict[int, Path], directory: Path
) -> None:
    """Starting over would cut its history to nothing, for what may be a disk that is ill today."""
    there = checkpoint.names(directory / "checkpoints")
    for name in there:
        flip(directory / "checkpoints" / name)
    before = contents(directory)
    told = refused(workshop, f"run={directory}")
    assert f"has {len(there)} checkpoints, and none is sound" in told and f"savepoint verify {directory}" in told
    assert contents(directory) == before
    shutil.move(directory / "checkpoints", directory.parent / "away")  # as it says
    ended = resumed(workshop, directory)
    assert "has no checkpoint: it starts over from its config.yaml" in ended.output
    assert diff.diff_runs(runs.read(finished[4]), runs.read(directory)) == []
    assert runs.read(directory).id == runs.read(finished[4]).id


def test_run_killed_before_its_first_checkpoint_survives_a_refused_resume_and_starts_over(
    workshop: Workshop, finished: dict[int, Path], directory: Path
) -> None:
    shutil.rmtree(directory / "checkpoints")
    for name in ("metrics.jsonl", "train.log"):
        (directory / name).unlink()
    before = contents(directory)
    assert "this machine has" in refused(workshop, f"run={directory}", "trainer.device=cuda:99")
    assert contents(directory) == before
    resumed(workshop, directory)
    assert diff.diff_runs(runs.read(finished[4]), runs.read(directory)) == []


def test_copied_run_resumes_where_it_lies(workshop: Workshop, finished: dict[int, Path], directory: Path) -> None:
    undo(directory, epochs=2)
    copy = directory.parent / "else where" / "copy"
    shutil.copytree(directory, copy)
    before = contents(directory)
    resumed(workshop, copy)
    assert diff.diff_runs(runs.read(finished[4]), runs.read(copy)) == []
    assert contents(directory) == before


def test_second_resume_of_a_run_is_refused(workshop: Workshop, directory: Path) -> None:
    undo(directory, epochs=2)
    before = contents(directory)
    lock = runs.read(directory).hold()
    told = refused(workshop, f"run={directory}")
    lock.release()
    assert "is being trained by another process" in told and contents(directory) == before


# Trust


HOSTILE = {
    "a call": (lambda data: data.replace(b"project.models.mlp.Mlp", b"os.system"), "'os.system' is not allowed"),
    "an alias bomb": (lambda data: data + b"a: &a [1]\nb: [*a, *a]\n", "the anchor &a"),
    "a tag": (lambda data: data.replace(b"seed: 0", b"seed: !!python/name:os.system 0"), "the tag"),
    "another shape": (lambda data: re.sub(rb"trainer:\n(  .*\n)+", b"trainer: 5\n", data), "trainer"),
    "the environment": (lambda data: data.replace(b"name: null", b"name: ${oc.env:HOME}"), "the interpolation"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_config_in_a_checkpoint_is_refused_outright(workshop: Workshop, directory: Path, name: str) -> None:
    change, told = HOSTILE[name]
    rewrite(directory / "checkpoints" / NAMES[4] / "config.yaml", change)
    before = contents(directory)
    assert told in refused(workshop, f"run={directory}")
    assert contents(directory) == before, "no fallback, nothing set aside"


def test_hostile_config_of_the_run_itself_is_refused(workshop: Workshop, directory: Path) -> None:
    path = directory / "config.yaml"
    path.write_bytes(path.read_bytes().replace(b"project.models.mlp.Mlp", b"os.system"))
    assert "'os.system' is not allowed" in refused(workshop, f"run={directory}")


def test_where_data_goes_is_not_taken_from_a_checkpoint(workshop: Workshop, directory: Path) -> None:
    undo(directory, epochs=3)
    uri = f"sqlite:///{directory.parent}/stolen.db".encode()
    for path in (directory / "config.yaml", directory / "checkpoints" / NAMES[3] / "config.yaml"):
        change: Callable[[bytes], bytes] = lambda data: data.replace(b"uri: null", b"uri: " + uri)  # noqa: E731
        path.write_bytes(change(path.read_bytes())) if path.parent == directory else rewrite(path, change)
    resumed(workshop, directory)
    assert not (directory.parent / "stolen.db").exists() and uri not in (directory / "config.yaml").read_bytes()


# An end that depends on how it goes


def test_a_run_that_stopped_early_goes_on_with_more_patience_as_if_it_had_it_from_the_start(
    workshop: Workshop, tmp_path: Path
) -> None:
    directories = {patience: tmp_path / str(patience) for patience in (2, 4)}
    for patience, directory in directories.items():
        # A rate of 0: nothing is ever better than after the first epoch.
        own = ("optimizer.lr=0", "scheduler=cosine", "trainer.max_epochs=9", f"trainer.patience={patience}")
        ended = workshop.run("train.py", *QUICK, *own, f"hydra.run.dir={directory}")
        assert ended.status == 0, ended.output
        assert (
            checkpoint.names(directory / "checkpoints")[-1] == f"epoch_{1 + patience:04d}_step_{4 + 4 * patience:08d}"
        )
    assert (
        f"run={directories[4]} trainer.patience=8" in ended.output
        and runs.read(directory).record["status"] == "finished"
    )
    assert "finished" in resumed(workshop, directories[2]).output
    resumed(workshop, directories[2], "trainer.patience=4")
    assert diff.diff_runs(*(runs.read(directory) for directory in directories.values())) == []


# A model that changes with the epoch


@pytest.mark.parametrize("stops", [[2], [4], [6], [3, 5, 8]], ids=str)
def test_layers_that_are_unfrozen_at_an_epoch_are_so_in_a_run_that_goes_on(
    workshop: Workshop, tmp_path: Path, stops: list[int]
) -> None:
    directories = [tmp_path / "whole", tmp_path / "parts"]
    own = (*QUICK, "model=thawing", "trainer.max_epochs=3", "checkpoint.keep_last=9")
    ended = workshop.run("train.py", *own, f"hydra.run.dir={directories[0]}")
    assert ended.status == 0, ended.output
    for number, stop in enumerate([*stops, 12]):
        end = f"trainer.max_steps={stop}"
        order = (
            ("resume.py", f"run={directories[1]}") if number else ("train.py", *own, f"hydra.run.dir={directories[1]}")
        )
        ended = workshop.run(*order, end)
        assert ended.status == 0, ended.output
    whole, parts = (runs.read(directory) for directory in directories)
    assert diff.diff_runs(whole, parts) == []
    saved = [checkpoint.load(path) for path in sorted(whole.checkpoints.iterdir())]
    first = [each.model["first.weight"].tolist() for each in saved]
    assert len(first) == 3 and first[0] != first[1] != first[2]
    assert [each.state["frozen"] for each in saved] == [["first.weight", "first.bias"], [], []]


# Other data

STORED = """
import torch


class Stored(torch.utils.data.Dataset):
    def __init__(self, split, *, path, val=8):
        with open(path) as file:
            self.numbers = [float(line) for line in file]
        self.numbers = self.numbers[val:] if split == "train" else self.numbers[:val]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return torch.full((64,), self.numbers[index]), index % 10
"""


@pytest.fixture
def stored(workshop: Workshop, tmp_path: Path) -> tuple[Path, Path]:
    """A run whose data lie in a file, and the file."""
    (workshop.root / "src" / "project" / "data" / "stored.py").write_text(STORED)
    lines, directory = tmp_path / "lines", tmp_path / "run"
    lines.write_text("".join(f"{number / 40}\n" for number in range(40)))
    (workshop.root / "conf" / "data" / "stored.yaml").write_text(
        "dataset: {_target_: project.data.stored.Stored, path: null}"
    )
    few = ("tracker=none", "trainer.threads=1", "data=stored", "data.batch_size=16", "trainer.max_epochs=2")
    ended = workshop.run("train.py", *few, f"data.dataset.path={lines}", f"hydra.run.dir={directory}")
    assert ended.status == 0, ended.output
    return directory, lines


def test_a_run_goes_on_with_the_data_that_it_was_trained_on(workshop: Workshop, stored: tuple[Path, Path]) -> None:
    directory, lines = stored
    lines.rename(lines.with_name("moved"))
    lines.with_name("moved").rename(lines)
    resumed(workshop, directory, "trainer.max_epochs=3", "data.num_workers=1")
    resumed(workshop, directory, "trainer.max_epochs=4", "data.num_workers=0")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: lines[:-1], "its split 'train' has 31 samples, and epoch_0002_step_00000004 was trained on 32 samples."),
        (lambda lines: [*lines, "1"], "its split 'train' has 33 samples, and epoch_0002_step_00000004 was trained on 32 samples."),
        (lambda lines: [*lines[:-1], "7"], "its split 'train' has samples with the SHA-256 "),
        (lambda lines: ["7", *lines[1:]], "its split 'val' has samples with the SHA-256 "),
        (lambda lines: [*lines[:20], lines[21], lines[20], *lines[22:]], "its split 'train' has samples with the SHA-256 "),
    ],
    ids=["shorter", "longer", "one sample", "validation", "order"],
)  # fmt: skip
def test_other_data_than_the_checkpoint_was_trained_on_are_refused_and_nothing_is_changed(
    workshop: Workshop, stored: tuple[Path, Path], workers: int, change: Callable[[list[str]], list[str]], told: str
) -> None:
    directory, lines = stored
    lines.write_text("\n".join(change(lines.read_text().splitlines())) + "\n")
    before = contents(directory)
    line = refused(workshop, f"run={directory}", "trainer.max_epochs=3", f"data.num_workers={workers}")
    assert line.startswith("error: data.dataset: ") and told in line and "train.py init_from=" in line
    assert contents(directory) == before


@pytest.mark.parametrize("digested", ["0", "-3", "true", "null", "10.5", '"all"', "1e999"])
def test_a_number_of_samples_that_is_none_is_passed_over(
    workshop: Workshop, stored: tuple[Path, Path], digested: str
) -> None:
    directory, _ = stored
    for path in (directory / "checkpoints").iterdir():
        rewrite(
            path / "provenance.json", lambda text: text.replace(b'"digested": 32', f'"digested": {digested}'.encode())
        )
    resumed(workshop, directory, "trainer.max_epochs=3")
