"""Fork a run with resume.py: what a fork begins with, what the difference changes, and what it leaves alone."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.moments import Strike
from tools.processes import Ended
from tools.share import some
from tools.workshop import Workshop

from savepoint import checkpoint, runs
from savepoint.checkpoint import Checkpoint
from savepoint.commands import diff

SMALL = ("tracker=none", "trainer.threads=1", "model.hidden=[8]", "data.limit_batches=4", "data.batch_size=16")
KEPT = (*SMALL, "trainer.max_epochs=3", "checkpoint.keep_last=9", "checkpoint.every_n_steps=3")
SECOND = "epoch_0002_step_00000008"  # the end of the second epoch
MIDDLE = "epoch_0001_step_00000006"  # two batches of the second epoch are done


@pytest.fixture(scope="module")
def parents(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of three epochs of 4 updates, with checkpoints at each third update and each epoch."""
    made = {}
    for name, options in {
        "plain": ("optimizer=adamw", "model.dropout=0.1"),
        "cosine": ("optimizer=sgd", "scheduler=cosine", "optimizer.lr=0.1"),
        "step": ("optimizer=sgd", "scheduler=step", "scheduler.step_size=1", "scheduler.gamma=0.5"),
        "onecycle": ("optimizer=sgd", "scheduler=onecycle"),
        "sequential": ("optimizer=adam", "scheduler=warmup_cosine"),
        "plateau": ("optimizer=sgd", "scheduler=plateau"),
        "fp16": ("amp=fp16", "trainer.ema_decay=0.5"),
    }.items():
        made[name] = tmp_path_factory.mktemp("parents") / name
        ended = the_workshop.run("train.py", *KEPT, *options, f"hydra.run.dir={made[name]}")
        assert ended.status == 0, ended.output
    return made


def fork(workshop: Workshop, parent: Path, to: Path, *changes: str, at: str = SECOND, **signals: Any) -> Ended:
    return workshop.run("resume.py", f"run={parent}@{at}", f"hydra.run.dir={to}", *changes, **signals)


def forked(workshop: Workshop, parent: Path, to: Path, *changes: str, at: str = SECOND) -> tuple[Checkpoint, str]:
    """Fork a run. Returns: the checkpoint that the fork begins with, and what was printed."""
    ended = fork(workshop, parent, to, *changes, at=at)
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    return checkpoint.load(to / "checkpoints" / at), ended.output


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_fork_without_a_difference_goes_on_to_the_bits_of_its_parent(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    for name, parent in parents.items():
        before = contents(parent)
        begun, told = forked(workshop, parent, tmp_path / name, "checkpoint.keep_last=9", at=MIDDLE)
        assert f"forked from {runs.read(parent).id}@{MIDDLE}: epoch 1, step 6" in told
        own = checkpoint.load(parent / "checkpoints" / MIDDLE)
        own.state["history_lines"] = 0
        assert diff.diff_checkpoints(begun, own) == [], name
        pair = [checkpoint.latest(each / "checkpoints")[0] for each in (parent, tmp_path / name)]
        assert pair[0] is not None and pair[1] is not None
        found = [each for each in diff.diff_checkpoints(*pair) if not each.startswith("history_lines")]
        assert found == [], name
        assert contents(parent) == before, "a parent is only read"


def test_a_fork_names_its_parent_and_its_history_begins_at_the_fork(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    _, told = forked(workshop, parents["plain"], tmp_path / "fork", "optimizer.lr=0.01", "name=warmer")
    parent, own = runs.read(parents["plain"]), runs.read(tmp_path / "fork")
    assert own.id != parent.id and own.record["name"] == "warmer" and own.record["parents"] == [parent.id]
    assert own.record["forked_from"]["run"] == parent.id and own.record["forked_from"]["checkpoint"] == SECOND
    lines = [json.loads(line) for line in own.metrics.read_text().splitlines()]
    assert lines[0]["step"] > 8 and lines[-1]["step"] == 12
    source = json.loads((own.checkpoints / SECOND / "provenance.json").read_text())
    assert source["forked_from"] == own.record["forked_from"] and source["run_id"] == own.id
    assert "  optimizer.lr  0.005 → 0.01\n" in told
    assert "optimizer.lr  0.005 → 0.01" in (tmp_path / "fork" / "train.log").read_text()


def test_a_fork_by_default_lies_under_runs_and_has_no_name(workshop: Workshop, parents: dict[str, Path]) -> None:
    place = workshop.root / "runs" / "2026-01-01" / "000001-parent01"
    shutil.copytree(parents["plain"], place)
    runs.read(place).update(id="pa001122", name="baseline")
    ended = workshop.run("resume.py", "run=pa00@8", "optimizer.lr=0.01")
    assert ended.status == 0, ended.output
    newest = runs.find("latest", workshop.root).run
    assert newest.record["parents"] == ["pa001122"] and newest.record["name"] is None
    assert re.fullmatch(r"\d{6}-" + newest.id, newest.directory.name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", newest.directory.parent.name)


@pytest.mark.parametrize("strike", [Strike(7), Strike(40), Strike(70), Strike(100)], ids=str)
def test_a_fork_that_is_killed_goes_on_to_the_same_bits(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path, strike: Strike
) -> None:
    changes = ("optimizer.lr=0.02", "optimizer.weight_decay=0.2", "trainer.ema_decay=0.9", "seed=4")
    forked(workshop, parents["plain"], tmp_path / "whole", *changes, at=MIDDLE)
    ended = fork(workshop, parents["plain"], tmp_path / "killed", *changes, at=MIDDLE, strike=strike)
    assert ended.status == -9, ended.output
    again = workshop.run("resume.py", f"run={tmp_path / 'killed'}")
    assert again.status == 0, again.output
    assert diff.diff_runs(runs.read(tmp_path / "whole"), runs.read(tmp_path / "killed")) == []


def test_a_fork_without_a_checkpoint_starts_over_from_its_parents(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    parent = Path(shutil.copytree(parents["plain"], workshop.root / "runs" / "2026-01-01" / "000001-p"))
    runs.read(parent).update(id="pb001122")
    forked(workshop, parent, tmp_path / "whole", "optimizer.lr=0.02")
    for name in ("again", "gone", "other"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints")
    again = workshop.run("resume.py", f"run={tmp_path / 'again'}")
    assert again.status == 0 and "starts over" in again.output, again.output
    assert diff.diff_runs(runs.read(tmp_path / "whole"), runs.read(tmp_path / "again")) == []
    manifest = parent / "checkpoints" / SECOND / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    ended = workshop.run("resume.py", f"run={tmp_path / 'other'}")
    assert ended.status == 2 and f"forked from pb001122@{SECOND}, which is another checkpoint now" in ended.output
    shutil.rmtree(parent)
    ended = workshop.run("resume.py", f"run={tmp_path / 'gone'}")
    assert ended.status == 2 and "which cannot be loaded any more: No run pb001122" in ended.output


# What the difference does


def test_hyperparameters_reach_the_groups_and_the_moments_stay(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    begun, told = forked(
        workshop, parents["plain"], tmp_path / "a", "optimizer.lr=0.01", "optimizer.weight_decay=0.3",
        "optimizer.betas=[0.8,0.9]",
    )  # fmt: skip
    own = checkpoint.load(parents["plain"] / "checkpoints" / SECOND)
    (group,), (before,) = begun.state["optimizer"]["param_groups"], own.state["optimizer"]["param_groups"]
    changed = {"lr": 0.01, "weight_decay": 0.3, "betas": group["betas"]}
    assert [*group["betas"]] == [0.8, 0.9] and group == before | changed
    assert "the learning rate goes on at 0.01, and was 0.005" in told
    for index, entry in own.state["optimizer"]["state"].items():
        for key, value in entry.items():
            assert torch.equal(begun.state["optimizer"]["state"][index][key], value)


@pytest.mark.parametrize("parent", ["cosine", "step", "sequential", "plateau"])
def test_a_rate_scales_the_groups_and_all_that_the_schedule_remembers(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path, parent: str
) -> None:
    own = checkpoint.load(parents[parent] / "checkpoints" / MIDDLE)
    rate = runs.read_config(parents[parent])["optimizer"]["lr"]
    begun, _ = forked(workshop, parents[parent], tmp_path / "a", f"optimizer.lr={rate * 3}", at=MIDDLE)
    old, new = (each.state["optimizer"]["param_groups"][0] for each in (own, begun))
    assert new["lr"] == pytest.approx(3 * old["lr"]) and new["lr"] > 0
    if "initial_lr" in old:
        assert new["initial_lr"] == pytest.approx(3 * old["initial_lr"])

    def rates(node: dict[str, Any]) -> list[float]:
        found = [rate for key in ("base_lrs", "_last_lr") for rate in node.get(key) or []]
        return found + [rate for inner in node.get("_schedulers", []) for rate in rates(inner)]

    before, after = (rates(each.state["scheduler"]) for each in (own, begun))
    assert after == pytest.approx([3 * rate for rate in before]) and before


def test_the_whole_of_a_scaled_schedule_is_scaled(workshop: Workshop, parents: dict[str, Path], tmp_path: Path) -> None:
    """The rates that the fork logs are three times those that its parent logged."""
    forked(workshop, parents["cosine"], tmp_path / "a", "optimizer.lr=0.3")
    pair = [runs.read_history(each / "metrics.jsonl")[-1] for each in (parents["cosine"], tmp_path / "a")]
    assert pair[0]["step"] == pair[1]["step"] == 12
    assert float(str(pair[1]["lr"])) == pytest.approx(3 * float(str(pair[0]["lr"])))


SCHEDULES = ("cosine", "step", "onecycle", "warmup_cosine", "none")


@pytest.mark.parametrize("schedule", some(SCHEDULES, lambda name: name in ("onecycle", "warmup_cosine")))
def test_a_new_schedule_starts_where_the_run_is(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path, schedule: str
) -> None:
    """From the fork on, its rates are those of a run that had the schedule from the beginning."""
    options = ("optimizer=sgd", f"scheduler={schedule}", *(["scheduler.step_size=2"] if schedule == "step" else []))
    ended = workshop.run("train.py", *KEPT, *options, f"hydra.run.dir={tmp_path / 'whole'}")
    assert ended.status == 0, ended.output
    for parent in ("step", "plateau"):
        begun, _ = forked(workshop, parents[parent], tmp_path / parent, *options[1:], at=MIDDLE)
        whole = checkpoint.load(tmp_path / "whole" / "checkpoints" / MIDDLE)
        assert begun.state["scheduler"] == whole.state["scheduler"]
        groups = [each.state["optimizer"]["param_groups"][0] for each in (begun, whole)]
        assert groups[0] == groups[1]
        assert begun.state["optimizer"]["state"][0]["momentum_buffer"].abs().sum() > 0


def test_another_optimizer_starts_fresh_and_says_so(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    for name, changes, reason in (
        ("class", ("optimizer=sgd",), "the checkpoint's is torch.optim.AdamW"),
        ("state", ("optimizer.amsgrad=true",), "its options need max_exp_avg_sq"),
        ("names", ("~optimizer", "+optimizer.all={_target_: torch.optim.SGD, _partial_: true, lr: 0.1, parameters: '*'}"),
         "the checkpoint has none of that name"),
    ):  # fmt: skip
        _, told = forked(workshop, parents["plain"], tmp_path / name, *changes)
        assert "begins fresh: " + reason in told, told


def test_groups_may_be_cut_anew_and_each_parameter_keeps_its_moments(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    change = "+optimizer.groups=[{parameters: 'head.*', lr: 0.5, weight_decay: 0.0}]"
    begun, _ = forked(workshop, parents["plain"], tmp_path / "a", change)
    own = checkpoint.load(parents["plain"] / "checkpoints" / SECOND)

    def moments(one: Checkpoint) -> dict[str, torch.Tensor]:
        saved = one.state["optimizer"]
        places = [
            (name, i) for g in saved["param_groups"] for name, i in zip(g["param_names"], g["params"], strict=True)
        ]
        return {name: saved["state"][i]["exp_avg"] for name, i in places}

    before, after = moments(own), moments(begun)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [group["lr"] for group in begun.state["optimizer"]["param_groups"]] == [0.005, 0.5]


def test_the_position_in_the_data_follows_what_changed(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    for change, batch, words in (
        ("data.batch_size=8", 4, "epoch 2 goes on after 32 samples, at batch 4 of the new size"),
        ("data.batch_size=12", 3, "at batch 3 of the new size"),
        ("data.shuffle=false", 0, "epoch 2 begins again"),
        ("seed=5", 0, "epoch 2 begins again"),
        ("optimizer.lr=0.1", 2, "optimizer.lr"),
    ):
        begun, told = forked(workshop, parents["plain"], tmp_path / change, change, "data.limit_batches=9", at=MIDDLE)
        assert (begun.state["epoch"], begun.state["step"], begun.state["batch"]) == (1, 6, batch), change
        assert words in told, told


def test_other_parts_start_fresh_where_they_are_new(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    own = checkpoint.load(parents["plain"] / "checkpoints" / SECOND)
    begun, told = forked(workshop, parents["plain"], tmp_path / "a", "amp=fp16", "trainer.ema_decay=0.9")
    assert begun.state["scaler"]["scale"] == 65536.0 and "average of the weights: begins" in told
    for name, value in own.model.items():
        assert torch.equal(begun.state["averaged"][f"module.{name}"], value)
    begun, told = forked(workshop, parents["fp16"], tmp_path / "b", "amp=none", "trainer.ema_decay=null")
    assert begun.state["averaged"] is None and "average of the weights: ends" in told
    begun, told = forked(workshop, parents["plain"], tmp_path / "c", "seed=9")
    assert not torch.equal(begun.state["rng"]["torch"], own.state["rng"]["torch"]) and "generators begin anew" in told
    begun, _ = forked(workshop, parents["plain"], tmp_path / "d", "init.freeze=hidden.*")
    assert begun.state["frozen"] and not own.state["frozen"]


# What is refused


@pytest.mark.parametrize(
    ("parent", "changes", "words"),
    [
        ("plain", ["model.hidden=[4]"], r"model\.hidden|python train\.py init_from=\w+@epoch_\d+_step_\d+ init\.exclude=\["),
        ("plain", ["init_from=latest"], "init_from: a fork begins with all weights of its parent"),
        ("plain", ["trainer.max_epochs=2"], "has reached the planned end, so its fork would have nothing to train"),
        ("onecycle", ["optimizer.lr=0.3"], r"optimizer\.lr: OneCycleLR decides the learning rate\. Change scheduler\.max_lr"),
        ("plain", ["~scheduler"], r"scheduler"),
        ("plain", ["optimizer.lr=x"], r"optimizer\.lr"),
        ("plain", ["seed=1,2"], r"resume trains one run\. For several, start a sweep"),
        ("plain", ["-m", "seed=1"], "resume.py has no such option"),
    ],
)  # fmt: skip
def test_a_fork_that_cannot_be_is_one_line_and_leaves_nothing(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path, parent: str, changes: list[str], words: str
) -> None:
    before = contents(parents[parent])
    ended = fork(workshop, parents[parent], tmp_path / "fork", *changes)
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert ended.status == 2 and len(errors) == 1 and "Traceback" not in ended.output, ended.output
    assert re.search(words, errors[0]), errors[0]
    assert not (tmp_path / "fork").exists() and contents(parents[parent]) == before


def test_the_line_for_a_changed_model_works(workshop: Workshop, parents: dict[str, Path], tmp_path: Path) -> None:
    place = workshop.root / "runs" / "2026-01-01" / "000001-p"
    shutil.copytree(parents["plain"], place)
    ended = fork(workshop, place, tmp_path / "fork", "model.hidden=[4]")
    line = re.search(r"python train.py (init_from=\S+(?: init\.\S+)*)", ended.output)
    assert ended.status == 2 and line, ended.output
    ended = workshop.run("train.py", *KEPT, "model.hidden=[4]", *line[1].split(), f"hydra.run.dir={tmp_path / 'new'}")
    assert ended.status == 0, ended.output


def test_a_run_without_a_checkpoint_has_nothing_to_fork(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(parents["plain"], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    ended = workshop.run("resume.py", f"run={tmp_path / 'run'}", "optimizer.lr=0.1")
    assert ended.status == 2 and "optimizer.lr: changing that forks run" in ended.output, ended.output


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_forked(
    workshop: Workshop, parents: dict[str, Path], tmp_path: Path
) -> None:
    parent = Path(shutil.copytree(parents["plain"], tmp_path / "run"))
    newest = sorted((parent / "checkpoints").iterdir())[-1]
    (newest / "state.json").write_text("{}")
    before = contents(parent)
    ended = workshop.run(
        "resume.py", f"run={parent}", "optimizer.lr=0.1", f"hydra.run.dir={tmp_path / 'fork'}", "trainer.max_epochs=4"
    )
    assert ended.status == 0 and "damaged: " in ended.output, ended.output
    assert contents(parent) == before
