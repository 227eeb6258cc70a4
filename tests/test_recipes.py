"""The pages of docs/recipes/ are true: their commands run, and what they train is exact, wherever it is interrupted."""

import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tools import pages, ranked
from tools.moments import Strike
from tools.processes import REPOSITORY, Zygote
from tools.share import some
from tools.warm import LIBRARIES, Warm
from tools.workshop import copy_repository

from savepoint import checkpoint, commands, runs
from savepoint.commands import diff

SEED = int(os.environ.get("SAVEPOINT_TEST_SEED", "0"))
PAGES = {path.stem: pages.read(path) for path in sorted((REPOSITORY / "docs" / "recipes").glob("*.md"))}
LINES = [(name, " ".join(line)) for name, page in PAGES.items() for line in page.trainings]
SMALL = (
    "tracker=none",
    "trainer.threads=1",
    "data.limit_batches=5",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=2",
)
IMPORTED = ("matplotlib.figure", "torchmetrics.classification")  # by the pages' code, and it takes seconds
TRIALS = 6  # interrupted runs of each command; in `make test` one of the first command of every second page
FIRST = dict(reversed(LINES))
SECOND = [FIRST[page] for page in sorted(FIRST)][1::2]
KILLED = [
    pytest.param(page, line, trial, marks=() if trial == 0 and line in SECOND else pytest.mark.long)
    for page, line in LINES
    for trial in range(TRIALS)
]


@dataclass
class Kitchen:
    """A repository with the files of all pages. whole: for each command, the run that nothing interrupted, its moments."""

    root: Path
    zygote: Zygote
    warm: Warm
    whole: dict[str, tuple[runs.Run, int]] = field(default_factory=dict)

    def arguments(self, line: str) -> tuple[str, ...]:
        return (*pages.placed(line.split(), self.root), *SMALL)

    def trained(self, line: str) -> tuple[runs.Run, int]:
        if line not in self.whole:
            directory, count = self.root / "whole" / str(len(self.whole)), self.root / f"count-{len(self.whole)}"
            order = (*self.arguments(line), f"hydra.run.dir={directory}")
            ended = self.zygote.run("train.py", *order, strike=Strike(count=str(count)))
            assert ended.status == 0 and "Traceback" not in ended.output, ended.output
            self.whole[line] = runs.read(directory), int(count.read_text())
        return self.whole[line]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    root = tmp_path_factory.mktemp("kitchen")
    copy_repository(root)
    for page in PAGES.values():
        page.write(root)
    zygote = Zygote(tmp_path_factory.mktemp("outputs"), root, IMPORTED)
    warm = Warm(tmp_path_factory.mktemp("warm"), *LIBRARIES, *IMPORTED, "savepoint.exact.trace")
    made = Kitchen(root, zygote, warm)
    for line in (line for page in PAGES.values() for line in page.sources):
        ended = zygote.run("train.py", *made.arguments(" ".join(line)))
        assert ended.status == 0, ended.output
    yield made
    zygote.close()
    warm.close()


def test_a_page_is_a_screen_or_two_and_touches_no_engine() -> None:
    for path in (REPOSITORY / "docs" / "recipes").glob("*.md"):
        assert len(path.read_text().splitlines()) < 160, path
        page = PAGES[path.stem]
        assert page.trainings and page.files
        assert all(each.startswith(("src/project/", "conf/")) for each in page.files), page.files.keys()
        assert f"recipes/{path.name}" in (REPOSITORY / "docs" / "README.md").read_text(), "it is on the list of pages"


@pytest.mark.parametrize(("page", "line"), some(LINES, lambda case: case[1] == FIRST[case[0]]))
def test_a_command_of_a_page_runs(kitchen: Kitchen, page: str, line: str) -> None:
    kitchen.trained(line)


@pytest.mark.parametrize(("page", "line", "trial"), KILLED)
def test_a_recipe_that_is_killed_anywhere_goes_on_to_the_same_bits(
    kitchen: Kitchen, tmp_path: Path, page: str, line: str, trial: int
) -> None:
    whole, moments = kitchen.trained(line)
    chance = random.Random(f"{SEED} {line} {trial}")
    directory = tmp_path / "run"
    saves = ("checkpoint.every_n_steps=3",) if trial % 2 else ()
    order: tuple[str, ...] = (*kitchen.arguments(line), *saves, f"hydra.run.dir={directory}")
    script = "train.py"
    for _ in range(chance.randint(1, 3)):
        strike = Strike(chance.randint(1, moments), chance.choice(("kill", "term", "ctrl-c")))
        ended = kitchen.zygote.run(script, *order, strike=strike)
        assert ended.status in (0, -9, -15, 130, 143), ended.output
        if (directory / runs.RECORD).exists():
            script, order = "resume.py", (f"run={directory}",)
    ended = kitchen.zygote.run(script, *order)
    assert ended.status == 0, ended.output
    assert diff.diff_runs(whole, runs.read(directory)) == [], f"SAVEPOINT_TEST_SEED={SEED}"


@pytest.mark.parametrize(("page", "line"), some(FIRST.items(), lambda case: case[0] == "gan"))
def test_a_recipe_is_trained_by_several_processes_and_killed(
    kitchen: Kitchen, tmp_path: Path, page: str, line: str
) -> None:
    count, whole, directory = tmp_path / "count", tmp_path / "whole", tmp_path / "run"
    order, out = kitchen.arguments(line), tmp_path / "out"
    strikes = {1: Strike(count=str(count))}
    ended = ranked.run(kitchen.zygote, out, 3, "train.py", *order, f"hydra.run.dir={whole}", strikes=strikes)
    assert [each.status for each in ended] == [0, 0, 0], ended[0].output
    chance = random.Random(f"{SEED} {line} ranks")
    strikes = {chance.randrange(3): Strike(chance.randint(1, int(count.read_text())), "kill")}
    ended = ranked.run(kitchen.zygote, out, 3, "train.py", *order, f"hydra.run.dir={directory}", strikes=strikes)
    assert -9 in [each.status for each in ended], ended[0].output
    again = ("resume.py", f"run={directory}")
    if not (directory / runs.RECORD).exists():
        again = ("train.py", *order, f"hydra.run.dir={directory}")
    ended = ranked.run(kitchen.zygote, out, 3, *again)
    assert [each.status for each in ended] == [0, 0, 0], ended[0].output
    assert diff.diff_runs(runs.read(whole), runs.read(directory)) == [], f"SAVEPOINT_TEST_SEED={SEED}"


@pytest.mark.long
@pytest.mark.parametrize("name", PAGES)
def test_a_recipe_passes_verify_exact(kitchen: Kitchen, name: str) -> None:
    whole, _ = kitchen.trained(next(line for page, line in LINES if page == name))
    said: list[str] = []
    with kitchen.warm.used("savepoint.exact.workplace"):
        code = commands.verify_exact(kitchen.root, str(whole.directory), say=said.append)
    assert code == 0, said
    assert said[-1].startswith("exact: ") and len(said) == 3, said


def test_the_folds_of_a_sweep_validate_each_sample_once_and_their_mean_is_told(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGES["k_fold"]
    (line,) = (line for line in page.commands if "-m" in line)
    ended = kitchen.zygote.run("train.py", *kitchen.arguments(" ".join(line)))
    assert ended.status == 0, ended.output
    folds = [run for run in runs.all_runs(kitchen.root) if "data.dataset.fold" in str(run.record["overrides"])]
    digests = [checkpoint.latest(run.checkpoints)[0].provenance["data"]["val"] for run in folds]
    assert len({each["sha256"] for each in digests}) == 5 and sum(each["samples"] for each in digests) == 1797
    monkeypatch.chdir(kitchen.root)
    (snippet,) = page.snippets
    exec(snippet, {})
    assert re.fullmatch(r"0\.\d{4} ± 0\.\d{4}\n", capsys.readouterr().out)


def test_a_teacher_stays_the_same_where_its_name_means_another_checkpoint_now(kitchen: Kitchen, tmp_path: Path) -> None:
    (line,) = (" ".join(line) for line in PAGES["distillation"].trainings)
    whole, moments = kitchen.trained(line)
    (origin,) = whole.record["weights"]
    teacher = runs.read(kitchen.root / "runs" / "cnn" / "teacher")
    assert origin["run"] == teacher.id and origin["checkpoint"] in checkpoint.names(teacher.checkpoints)
    directory = tmp_path / "run"
    strike = Strike(moments // 2, "kill")
    assert (
        kitchen.zygote.run("train.py", *kitchen.arguments(line), f"hydra.run.dir={directory}", strike=strike).status
        == -9
    )
    best = teacher.checkpoints / origin["checkpoint"]
    state = (best / "state.json").read_bytes()
    better = [name for name in checkpoint.names(teacher.checkpoints) if name != origin["checkpoint"]]
    assert better, "another checkpoint for @best to mean"
    config = (teacher.directory / "config.yaml").read_text()
    try:
        (teacher.directory / "config.yaml").write_text(config.replace("mode: min", "mode: max"))
        ended = kitchen.zygote.run("resume.py", f"run={directory}")
        assert ended.status == 0, ended.output
        assert diff.diff_runs(whole, runs.read(directory)) == []
    finally:
        (teacher.directory / "config.yaml").write_text(config)
    assert (best / "state.json").read_bytes() == state


def test_a_teacher_that_is_gone_stops_a_resume_in_one_line(kitchen: Kitchen, tmp_path: Path) -> None:
    (line,) = (" ".join(line) for line in PAGES["distillation"].trainings)
    whole, _ = kitchen.trained(line)
    copied = runs.read(Path(shutil.copytree(whole.directory, tmp_path / "run")))
    teacher = runs.read(kitchen.root / "runs" / "cnn" / "teacher")
    best = teacher.checkpoints / whole.record["weights"][0]["checkpoint"]
    best.rename(tmp_path / "away")
    try:
        ended = kitchen.zygote.run("resume.py", f"run={copied.directory}", "trainer.max_epochs=4")
    finally:
        (tmp_path / "away").rename(best)
    assert ended.status == 2 and ended.output.splitlines()[-1].startswith("error: "), ended.output
    assert best.name in ended.output and "Traceback" not in ended.output


def test_a_teacher_that_no_run_is_called_is_told_in_one_line(kitchen: Kitchen) -> None:
    (line,) = PAGES["distillation"].trainings
    arguments = ["task.teacher=nope" if each.startswith("task.teacher=") else each for each in line]
    ended = kitchen.zygote.run("train.py", *kitchen.arguments(" ".join(arguments)))
    assert ended.status == 2 and ended.output.startswith("error: No run nope."), ended.output
    assert ended.output.count("\n") == 1


def test_the_latest_run_as_a_teacher_is_not_the_one_that_begins(kitchen: Kitchen) -> None:
    (line,) = PAGES["distillation"].trainings
    arguments = ["task.teacher=latest" if each.startswith("task.teacher=") else each for each in line]
    before = runs.all_runs(kitchen.root)[-1]
    ended = kitchen.zygote.run("train.py", *kitchen.arguments(" ".join(arguments)))
    assert ended.status == 0, ended.output
    begun = runs.all_runs(kitchen.root)[-1]
    assert begun.id != before.id and begun.record["weights"][0]["run"] == before.id
    shutil.rmtree(begun.directory)
