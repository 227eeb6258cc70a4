"""train.py, run as a person runs it: what a start leaves on the disk, how it is refused, stopped and followed."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tools.moments import Strike
from tools.processes import command
from tools.warm import Warm
from tools.workshop import Workshop

from savepoint import checkpoint, runs
from savepoint.checkpoint import layout
from savepoint.commands import diff
from savepoint.runs import history

QUICK = ("tracker=none", "trainer.threads=1", "data.limit_batches=4", "data.batch_size=32", "trainer.max_epochs=2")


def only_run(workshop: Workshop) -> runs.Run:
    (found,) = runs.all_runs(workshop.root)
    return found


def files_that_name(directory: Path, text: str) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


# What a run leaves


def test_default_run_learns_digits_and_leaves_what_the_design_says(workshop: Workshop) -> None:
    ended = workshop.run("train.py", "tracker=none", "trainer.threads=1")
    assert ended.status == 0, ended.output
    made = only_run(workshop)
    assert re.fullmatch(r"runs/\d{4}-\d\d-\d\d/\d{6}-" + made.id, str(made.directory.relative_to(workshop.root)))
    there = {path.name for path in made.directory.iterdir()}
    files = {"config.yaml", "run.json", "metrics.jsonl", "train.log", "example.safetensors"}
    assert there == files | {"checkpoints", ".hydra", ".lock"}
    choices, (first,) = made.record["choices"], made.record["commands"]
    assert {"model": "mlp", "optimizer": "adamw", "tracker": "none"}.items() <= choices.items()
    assert first["command"] == "train.py tracker=none trainer.threads=1"
    assert made.record | {"started": "", "id": "", "choices": {}, "commands": []} == {
        "id": "",
        "name": None,
        "status": "finished",
        "started": "",
        "tracker": None,
        "parents": [],
        "sweep": None,
        "overrides": ["tracker=none", "trainer.threads=1"],
        "forked_from": None,
        "choices": {},
        "commands": [],
    }
    epochs = [line for line in history.read_history(made.metrics) if "val/loss" in line]
    assert [line["epoch"] for line in epochs] == list(range(1, 21))
    keys = {"step", "epoch", "time", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"}
    assert set(epochs[-1]) == keys | {"system/samples_per_second"}
    assert epochs[-1]["val/accuracy"] > 0.95


def test_checkpoints_hold_all_files_and_retention_keeps_the_last_and_the_best(workshop: Workshop) -> None:
    ended = workshop.run(
        "train.py", *QUICK, "trainer.max_epochs=8", "optimizer.lr=0.3", "seed=1", "checkpoint.keep_last=2"
    )
    assert ended.status == 0, ended.output
    made = only_run(workshop)
    losses = {line["epoch"]: line["val/loss"] for line in history.read_history(made.metrics)}
    best = min(losses, key=lambda epoch: losses[epoch])
    assert best < 7, "the best is not among the last anyway"
    assert [int(name[6:10]) for name in checkpoint.names(made.checkpoints)] == [best, 7, 8]
    assert not list(made.checkpoints.glob(".*"))
    newest = made.checkpoints / checkpoint.names(made.checkpoints)[-1]
    assert {path.name for path in newest.iterdir()} == layout.REQUIRED | {"manifest.json"}
    assert (newest / "config.yaml").read_bytes() == (made.directory / "config.yaml").read_bytes()
    assert "${" not in (newest / "config.yaml").read_text()


def test_no_file_of_a_run_names_where_it_lies_and_a_moved_run_resumes_there(workshop: Workshop, tmp_path: Path) -> None:
    directory, moved = tmp_path / "here" / "a", tmp_path / "there" / "b"
    config = (*QUICK, "scheduler=step", "trainer.profile=true")
    assert workshop.run("train.py", *config, f"hydra.run.dir={directory}").status == 0
    assert files_that_name(directory, str(directory)) == []
    moved.parent.mkdir()
    directory.rename(moved)
    ended = workshop.run("resume.py", f"run={moved}", "trainer.max_epochs=3")
    assert ended.status == 0, ended.output
    assert len(history.read_history(moved / "metrics.jsonl")) == 3 and not directory.exists()
    assert files_that_name(moved, str(directory)) + files_that_name(moved, str(moved)) == []


def test_log_of_a_run_in_a_directory_of_one_letter_is_readable(workshop: Workshop, tmp_path: Path) -> None:
    ended = workshop.run("train.py", *QUICK, "hydra.run.dir=a", cwd=tmp_path)
    assert ended.status == 0, ended.output
    log = (tmp_path / "a" / "train.log").read_text()
    assert "checkpoint <run>/checkpoints/" in log and "training samples" in log


def test_what_a_run_says_about_going_on_works_wherever_it_lies(workshop: Workshop, tmp_path: Path) -> None:
    for place in ((), (f"hydra.run.dir={tmp_path / 'a place~1, (b)'}",)):
        ended = workshop.run("train.py", *QUICK, *place)
        (said,) = re.findall(r"to go on: python resume.py (.*)", ended.output)
        words = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {said}"], capture_output=True, text=True
        ).stdout.splitlines()
        ended = workshop.run("resume.py", *words)
        assert ended.status == 0 and "  4/4 " in ended.output, ended.output


def test_starts_of_the_same_second_have_directories_of_their_own(workshop: Workshop) -> None:
    started = [workshop.start("train.py", *QUICK, output=os.devnull) for _ in range(4)]
    try:
        deadline = time.monotonic() + 60
        while len(runs.all_runs(workshop.root)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        for process in started:
            process.kill()
            process.wait()
    ids = {made.id for made in runs.all_runs(workshop.root)}
    assert len(ids) == 4 and all(one[0].isalpha() for one in ids)


# Refused starts


REFUSED = {
    "no such option": (("optimizer=nope",), "optimizer has no option nope. It has: adadelta, adafactor"),
    "no such key": (("trainer.max_epoch=3",), "Did you mean max_epochs?"),
    "out of range": (("trainer.max_epochs=-1",), "trainer.max_epochs=-1: must be at least 1"),
    "a foreign class": (("model._target_=os.system",), "'os.system' is not allowed"),
    "a sweep without -m": (("seed=1,2",), "several values make a sweep: add -m"),
    "no override": (("seed",), "an override reads key=value"),
    "a store that MLflow lacks": (
        ("tracker=mlflow", "tracker.uri=file:/x"),
        "MLflow keeps runs in a plain directory only where MLFLOW_ALLOW_FILE_STORE=true is set.",
    ),
    "a secret": (("+model.password=hunter2",), "model.password: a config holds no secrets"),
    "a password in an address": (("name=ftp://me:hunter2@host",), "an address with a password in it"),
    "more than the data": (("data.batch_size=9999",), "data.batch_size=9999 exceeds the training set"),
    "a monitor that nothing logs": (("checkpoint.monitor=val/typo", "tracker=mlflow"), "val/typo: nothing logs that"),
    "patience for nothing": (("trainer.patience=3", "checkpoint.monitor=null"), "trainer.patience: there is no check"),
    "torch's own range": (("optimizer.lr=-1",), "optimizer.lr=-1: AdamW: Invalid learning rate"),
    "a layer without a shape": (("model=lazy",), "model: layers.1.weight has no shape before the first batch"),
    "a missing device": (("trainer.device=cuda:99",), "trainer.device=cuda:99: this machine has"),
    "weights of no run": (("init_from=nope",), "No run nope."),
    "an interpolated run": (("init_from=${x}",), "cannot name a run"),
    "no runs yet": (("init_from=latest",), "There are no runs yet"),
    "a directory that cannot be": (
        ("hydra.run.dir=/dev/null/x",),
        "the run's directory cannot be made: Not a directory",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_start_is_one_line_and_leaves_nothing(workshop: Workshop, tmp_path: Path, name: str) -> None:
    wrong, told = REFUSED[name]
    ended = workshop.run("train.py", *QUICK, *wrong)
    assert ended.status == 2, ended.output
    assert ended.output.startswith("error: ") and ended.output.count("\n") == 1, ended.output
    assert told in ended.output and "hunter2" not in ended.output
    assert workshop.left() == []
    if not any(each.startswith("hydra.run.dir=") for each in wrong):
        assert workshop.run("train.py", *QUICK, *wrong, f"hydra.run.dir={tmp_path / 'run'}").status == 2
        assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_that_the_forks_own_code_names_in_training_is_one_line(
    workshop: Workshop, tmp_path: Path
) -> None:
    ended = workshop.run("train.py", *QUICK, "model=raising", "model.error=value", f"hydra.run.dir={tmp_path}")
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    line = next(line for line in ended.output.splitlines() if line.startswith("error: "))
    assert re.fullmatch(r"error: model\.width=3: one of 4 is needed \(src/project/models/faulty\.py, line \d+\)", line)
    assert "Traceback" in (tmp_path / "train.log").read_text()


def test_all_faults_of_a_config_are_told_together(workshop: Workshop) -> None:
    ended = workshop.run("train.py", *QUICK, "trainer.accumulate=0", "data.num_workers=-1", "checkpoint.mode=most")
    assert ended.status == 2 and ended.output.count("\n") == 3, ended.output


def test_directory_of_a_run_is_refused_and_left_as_it_is(workshop: Workshop, tmp_path: Path) -> None:
    assert workshop.run("train.py", *QUICK, f"hydra.run.dir={tmp_path}").status == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    ended = workshop.run("train.py", *QUICK, "seed=1", f"hydra.run.dir={tmp_path}")
    assert ended.status == 2 and "already holds a run" in ended.output, ended.output
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}


def test_second_of_two_starts_in_one_directory_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    first = runs.hold(tmp_path, "the first")
    ended = workshop.run("train.py", *QUICK, f"hydra.run.dir={tmp_path}")
    first.release()
    assert ended.status == 2 and "is being trained by another process" in ended.output, ended.output
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# Without torch


@pytest.mark.parametrize("flags", [("--help",), ("--cfg", "job")])
def test_help_and_config_are_shown_without_importing_torch_or_mlflow(
    workshop: Workshop, flags: tuple[str, ...]
) -> None:
    order = [sys.executable, "-X", "importtime", "train.py", *flags]
    done = subprocess.run(order, cwd=workshop.root, capture_output=True, text=True)
    assert done.returncode == 0 and "optimizer" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported and not imported & {"torch", "mlflow", "numpy"}
    assert workshop.left() == []


def test_shell_completes_options(workshop: Workshop) -> None:
    script = command(str(workshop.root / "train.py"), "-sc", "install=bash", cwd=workshop.root)
    assert script.status == 0 and "complete " in script.output
    line = "python train.py optimizer="
    typed = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    ended = command(str(workshop.root / "train.py"), "-sc", "query=bash", cwd=workshop.root, **typed)
    assert ended.status == 0 and {"optimizer=adam", "optimizer=sgd"} <= set(ended.output.split())
    assert workshop.left() == []


# Stopped runs


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_stop_saves_in_the_middle_of_an_epoch_and_resuming_gives_the_same_bits(
    workshop: Workshop, tmp_path: Path, asked: signal.Signals
) -> None:
    config = (*QUICK, "data.limit_batches=null", "data.batch_size=4", "trainer.log_every_n_steps=1")
    config = (*config, "trainer.max_epochs=1", "data.dataset.augment=true")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert workshop.run("train.py", *config, f"hydra.run.dir={whole}").status == 0
    ended = workshop.run("train.py", *config, f"hydra.run.dir={stopped}", once=stopped / "metrics.jsonl", signal=asked)
    assert ended.status == 128 + asked and "Traceback" not in ended.output, ended.output
    assert f"python resume.py run={stopped}" in ended.output
    made = runs.read(stopped)
    assert made.record["status"] == "interrupted"
    newest, _ = checkpoint.latest(made.checkpoints)
    assert newest and 0 < newest.state["batch"] < 360 and newest.state["epoch"] == 0
    ended = workshop.run("resume.py", f"run={stopped}")
    assert ended.status == 0, ended.output
    assert diff.diff_runs(runs.read(whole), runs.read(stopped)) == []
    assert runs.read(stopped).record["status"] == "finished"


def test_second_ctrl_c_stops_at_once_and_breaks_nothing(workshop: Workshop, tmp_path: Path) -> None:
    config = (*QUICK, "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=1", f"hydra.run.dir={tmp_path / 'run'}")
    # In the second update: to_device calls itself, and the rehearsal has called it six times.
    ended = workshop.run("train.py", *config, strike=Strike(10, "ctrl-c", of="device.to_device", again=1))
    assert ended.status == 130 and "Traceback" not in ended.output, ended.output
    assert "Once more stops now." in ended.output and "Stopped at once. To go on: python resume.py run=" in ended.output
    made = runs.read(tmp_path / "run")
    assert made.record["status"] == "interrupted"
    assert checkpoint.names(made.checkpoints) == ["epoch_0000_step_00000001"] and not list(made.checkpoints.glob(".*"))
    assert checkpoint.verify(made.checkpoints / "epoch_0000_step_00000001") is None


def test_second_sigterm_ends_the_process_as_if_nobody_watched(workshop: Workshop, tmp_path: Path) -> None:
    # In the first update: to_device calls itself, and the rehearsal has called it six times.
    twice = Strike(7, "term", of="device.to_device", again=1)
    ended = workshop.run("train.py", *QUICK, f"hydra.run.dir={tmp_path / 'run'}", strike=twice)
    assert ended.status == -signal.SIGTERM, ended.output
    assert "finishing this step, then saving. Once more stops now." in ended.output


@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_ctrl_c_before_training_is_one_line(workshop: Workshop, tmp_path: Path, delay: float) -> None:
    order = [sys.executable, str(workshop.root / "train.py"), *QUICK, f"hydra.run.dir={tmp_path / 'run'}"]
    process = subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert re.search(rf"Stopped .*python resume.py run={tmp_path}", output), output
    assert runs.read(tmp_path / "run").record["status"] == "interrupted"


@pytest.mark.parametrize("wrong", ["false", "true"])
def test_ctrl_c_that_a_library_keeps_to_itself_still_stops_the_run(workshop: Workshop, wrong: str) -> None:
    ended = workshop.run("train.py", *QUICK, "model=swallowing", f"+model.wrong={wrong}")
    assert ended.status == 130 and "Stopped at once. To go on: python resume.py run=" in ended.output, ended.output
    assert only_run(workshop).record["status"] == "interrupted"


# Bugs and full disks


def test_bug_keeps_its_traceback_and_the_run_is_failed(workshop: Workshop, warm: Warm) -> None:
    ended = warm.run([sys.executable, "train.py", *QUICK, "model=raising"], cwd=workshop.root)
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "RuntimeError: a bug in the model" in ended.stderr
    made = only_run(workshop)
    assert made.record["status"] == "failed"
    assert "a bug in the model" in (made.directory / "train.log").read_text()


def test_file_that_the_project_misses_is_a_bug_and_no_full_disk(workshop: Workshop) -> None:
    ended = workshop.run("train.py", *QUICK, "model=raising", "model.error=file")
    assert "Traceback" in ended.output and "data/cat.png" in ended.output and "Make room" not in ended.output


def test_full_disk_costs_one_line_and_no_checkpoint_that_was_there(workshop: Workshop, tmp_path: Path) -> None:
    # At a known moment of a known save, so not beside it: tests/test_durability.py has every other.
    config = (*QUICK, "model=filling", "trainer.max_epochs=3", "checkpoint.async_save=false")
    whole, full = tmp_path / "whole", tmp_path / "full"
    assert workshop.run("train.py", *config, f"hydra.run.dir={whole}").status == 0
    ended = workshop.run("train.py", *config, "model.at=11", f"hydra.run.dir={full}")
    assert ended.status == 2 and "Traceback" not in ended.output and "Logging error" not in ended.output, ended.output
    assert (
        "No checkpoint at step 8: File too large. Training goes on; epoch_0001_step_00000004 is kept." in ended.output
    )
    error = ended.output.splitlines()[-1]
    assert error.startswith("error: The run directory cannot be written: File too large.")
    assert f"epoch_0001_step_00000004 is kept. Make room, then: python resume.py run={full}" in error
    made = runs.read(full)
    assert made.record["status"] == "failed" and [path.name for path in made.checkpoints.iterdir()] == [
        "epoch_0001_step_00000004"
    ]
    # The limit is the process's, which begins to count anew: one epoch more fits, then the last one.
    assert workshop.run("resume.py", f"run={full}").status == 2
    ended = workshop.run("resume.py", f"run={full}")
    assert ended.status == 0, ended.output
    assert diff.diff_runs(runs.read(whole), runs.read(full)) == []


def test_start_on_a_full_disk_is_one_line(workshop: Workshop) -> None:
    order = f"ulimit -f 0; exec {sys.executable} train.py {' '.join(QUICK)}"
    done = subprocess.run(["bash", "-c", order], cwd=workshop.root, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: The run directory cannot be written: File too large.\n"
    assert workshop.left() == []


# Presets, weights, and what a person sees


@pytest.mark.parametrize("preset", ["one_batch", "overfit", "anomaly", "profiler"])
def test_debug_preset_runs(workshop: Workshop, preset: str) -> None:
    ended = workshop.run("train.py", f"debug={preset}", "trainer.threads=1")
    assert ended.status == 0, ended.output
    made = only_run(workshop)
    assert made.record["tracker"] is None
    if preset == "overfit":
        assert history.read_history(made.metrics)[-1]["train/accuracy"] == 1.0
    if preset == "profiler":
        assert "self_cpu_time_total" not in ended.output and "Self CPU" in ended.output
        assert json.loads((made.directory / "trace.json").read_bytes())["traceEvents"]


def test_fine_tuning_takes_the_weights_and_nothing_else(workshop: Workshop) -> None:
    assert workshop.run("train.py", *QUICK, "trainer.max_epochs=8", "optimizer.lr=0.3", "seed=1").status == 0
    parent = only_run(workshop)
    best = checkpoint.best(parent.checkpoints, monitor="val/loss", mode="min")[0]
    assert best != checkpoint.names(parent.checkpoints)[-1]
    weights = {at: checkpoint.load(parent.checkpoints / at).model for at in checkpoint.names(parent.checkpoints)}
    # A learning rate of 0: what is trained is what was loaded.
    still = ("optimizer.lr=0", "optimizer.weight_decay=0", "seed=5")
    for text, expected in ((parent.id, -1), (f"{parent.id}@best", best), ("latest@best", best)):
        ended = workshop.run("train.py", *QUICK, *still, f"init_from={text}")
        assert ended.status == 0, ended.output
        tuned = runs.all_runs(workshop.root)[-1]
        assert tuned.record["parents"] == [parent.id]
        newest, _ = checkpoint.latest(tuned.checkpoints)
        name = checkpoint.names(parent.checkpoints)[expected] if isinstance(expected, int) else expected
        assert all(weights[name][key].equal(newest.model[key]) for key in newest.model)
        assert newest.state["step"] == 8 and f"init_from: {parent.id}@{name}" in newest.config
        shutil.rmtree(tuned.directory)


def test_weights_that_do_not_fit_are_listed(workshop: Workshop, tmp_path: Path) -> None:
    assert workshop.run("train.py", *QUICK, f"hydra.run.dir={tmp_path / 'parent'}").status == 0
    ended = workshop.run("train.py", *QUICK, "model.hidden=[]", f"init_from={tmp_path / 'parent'}")
    assert ended.status == 2 and ended.output.count("\n") == 1, ended.output
    assert (
        "unexpected: hidden.0.linear.bias, hidden.0.linear.weight" in ended.output
        and "head.weight is [10, 256] in the checkpoint" in ended.output
    )
    assert workshop.left() == []


def test_terminal_shows_a_bar_with_steps_rate_and_time_left(workshop: Workshop) -> None:
    main, terminal = pty.openpty()
    slow = ("model=slow", "model.seconds=0.12", "data.limit_batches=2")
    name = os.ttyname(terminal)
    process = workshop.start("train.py", *QUICK, *slow, output=name, TERM="xterm", COLUMNS="100")
    shown = os.read(main, 65536)
    os.close(terminal)  # not before the run has opened it too
    while True:
        try:
            read = os.read(main, 65536)
        except OSError:  # Linux says so when the last process that had the terminal has ended
            break
        if not read:
            break
        shown += read
    os.close(main)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"epoch 2/2 ━+\S* +\d/4 steps +\d+/s +\d:\d\d:\d\d", text), text
    assert len(re.findall(r"[\r\n]epoch step train/loss .*[\r\n]", text)) == 1
    assert re.search(r"[\r\n]  1/2    2 +\d\.\d+ ", text), "the epoch's row, above the bar"


def test_pipe_gets_one_plain_line_an_epoch(workshop: Workshop) -> None:
    ended = workshop.run("train.py", *QUICK)
    rows = re.findall(r"^(?:epoch step .*|  [12]/2 .*)$", ended.output, re.MULTILINE)
    assert [row.split()[:2] for row in rows] == [["epoch", "step"], ["1/2", "4"], ["2/2", "8"]]
    assert len({len(row) for row in rows}) == 1 and len(rows[0]) <= 80 and " val/loss " in rows[0]
    assert "\x1b" not in ended.output and "━" not in ended.output


def test_a_run_goes_on_when_nobody_reads_its_output_any_more(workshop: Workshop, tmp_path: Path) -> None:
    """As in `python train.py | head -1`."""
    directory, pipe, errors = tmp_path / "run", tmp_path / "pipe", tmp_path / "errors"
    os.mkfifo(pipe)
    errors.touch()
    process = workshop.start("train.py", *QUICK, f"hydra.run.dir={directory}", output=pipe, errors=errors)
    with pipe.open() as output:
        output.readline()
    assert (process.wait(), errors.read_text()) == (0, "")
    assert runs.read(directory).record["status"] == "finished"


def test_a_class_that_fails_while_it_is_built_is_one_line_and_a_traceback_in_train_log(workshop: Workshop) -> None:
    ended = workshop.run("train.py", *QUICK, "model=raising", "model.at=0")
    assert ended.status == 2 and "Traceback" not in ended.output
    (log,) = workshop.root.glob("runs/*/*/train.log")
    assert ended.output.startswith("error: model.error='bug': Raising: KeyError: 'a bug while it is built'")
    assert ended.output.endswith(f"The traceback is in {log}.\n")
    assert "Traceback" in log.read_text() and "in __init__" in log.read_text()
    assert [path.name for path in log.parent.iterdir()] == ["train.log"]
