"""The promise: whatever ends the process, and whatever the disk refuses, the newest whole checkpoint is there.

The walks end a process at the n-th moment at which it changes the disk (tests/tools/disk.py), for every n; a quick test takes
a share of them, another one with each SAVEPOINT_TEST_SEED. That nothing is changed which `disk` does not see was held
against strace, which also shows it (docs/checkpoint-format.md says why each call is where it is):
`strace -f -y -e trace=desc,file python tests/tools/saving.py RUN 1 4`.
"""

import errno
import itertools
import os
import random
import re
import signal
import stat
from pathlib import Path

import pytest
import torch
from tools import saving
from tools.disk import Moment
from tools.processes import Ended, Zygote

from savepoint import checkpoint, runs
from savepoint.checkpoint import layout
from savepoint.commands import diff
from savepoint.runs import history

SEED = int(os.environ.get("SAVEPOINT_TEST_SEED", "0"))
COUNT = 4  # checkpoints that saving.py is asked for
TRAIN = ("tracker=none", "trainer.threads=1", "data.limit_batches=4", "data.batch_size=32", "trainer.max_epochs=3")
BY_STEP = (*TRAIN, "trainer.max_epochs=2", "checkpoint.every_n_steps=3", "checkpoint.keep_last=1")


def moments(log: Path) -> list[Moment]:
    return [Moment(*line.split(" ")) for line in log.read_text().splitlines()]


def share(count: int, of: int, *, what: str) -> list[int]:
    """Some of the numbers from 1 to `of`: others with another seed."""
    return sorted(random.Random(f"{SEED} {what}").sample(range(1, of + 1), min(count, of)))


def entries(directory: Path) -> set[str]:
    return {entry.name for entry in os.scandir(directory)} if directory.exists() else set()


# A process that is killed


def look(directory: Path, durable: int) -> None:
    """What a process finds that looks at the run after the kill. durable: the last checkpoint that `save` returned."""
    root = directory / runs.CHECKPOINTS
    newest, damaged = checkpoint.latest(root)
    assert damaged == [], "no checkpoint has its name before it is whole, or while it is deleted"
    assert [name for name in checkpoint.names(root) if checkpoint.verify(root / name) is not None] == []
    assert {name for name in entries(root) if not name.startswith(".tmp-")} == set(checkpoint.names(root))
    step = newest.state["step"] if newest else 0
    assert step in (durable, durable + 1)
    lines = 0
    if newest:
        assert torch.equal(newest.model["weight"], saving.weight(step))
        assert torch.equal(newest.state["m"], saving.weight(-step))
        lines = newest.state["history_lines"]
    assert len(history.read_history(directory / runs.METRICS)) >= lines == step, "the checkpoint counts on these lines"

    # The next start, as a run is continued.
    history.cut_history(directory / runs.METRICS, lines=lines)
    saving.run(directory, step + 1, 1)
    best = [2] if step + 1 > 2 else []
    assert checkpoint.names(root) == [checkpoint.name_of(epoch=k, step=k) for k in [*best, step + 1]]
    assert entries(root) == set(checkpoint.names(root)), "what the kill left is gone"
    assert len(history.read_history(directory / runs.METRICS)) == step + 1


def killed_saving(zygote: Zygote, directory: Path, at: int) -> bool:
    """Kill saving.py at its n-th moment, and look at what there is. False if it ended before that."""
    directory.mkdir()
    ended = zygote.run("tools.saving", str(directory), "1", str(COUNT), disk=directory, at=at)
    assert ended.status in (0, -signal.SIGKILL), ended.output
    durable = len(ended.output.splitlines())
    assert (ended.status == 0) <= (durable == COUNT)
    look(directory, durable)
    return ended.status != 0


@pytest.fixture(scope="module")
def saved(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Moment]]:
    """The run of a saving.py that nothing disturbs, and every moment of it."""
    directory, log = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("log") / "moments"
    assert zygote.run("tools.saving", str(directory), "1", str(COUNT), disk=directory, log=str(log)).status == 0
    return directory, moments(log)


def test_kill_at_any_moment_leaves_the_newest_whole_checkpoint(
    zygote: Zygote, saved: tuple[Path, list[Moment]], tmp_path: Path
) -> None:
    for at in share(30, len(saved[1]), what="kill"):
        killed_saving(zygote, tmp_path / str(at), at)


@pytest.mark.long
def test_kill_at_every_moment_leaves_the_newest_whole_checkpoint(
    zygote: Zygote, saved: tuple[Path, list[Moment]], tmp_path: Path
) -> None:
    walked = next(at for at in itertools.count(1) if not killed_saving(zygote, tmp_path / str(at), at))
    assert walked >= 0.9 * len(saved[1]), "threads may take turns in another order, but not so much"


def train(zygote: Zygote, directory: Path, *, config: tuple[str, ...] = BY_STEP, **fault: object) -> Ended:
    """Start the run, or go on with it, on a disk with a fault: the directory's own, and its parent's for the name."""
    begun = (directory / runs.RECORD).exists()
    order = ("resume.py", f"run={directory}") if begun else ("train.py", *config, f"hydra.run.dir={directory}")
    return zygote.run(*order, disk=directory.parent, **fault)


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, list[Moment]]:
    directory, log = tmp_path_factory.mktemp("undisturbed") / "run", tmp_path_factory.mktemp("log") / "moments"
    ended = train(zygote, directory, log=str(log))
    assert ended.status == 0, ended.output
    return runs.read(directory), moments(log)


def goes_on_as_if_nothing_happened(zygote: Zygote, directory: Path, whole: runs.Run) -> None:
    ended = train(zygote, directory)
    assert ended.status == 0, ended.output
    resumed = runs.read(directory)
    assert diff.diff_runs(whole, resumed) == []
    assert checkpoint.names(resumed.checkpoints) == checkpoint.names(whole.checkpoints)
    assert entries(resumed.checkpoints) == entries(whole.checkpoints), "nothing is left of what was half written"
    assert entries(directory) | {".hydra"} == entries(whole.directory)  # a record that nothing reads


def killed_training(zygote: Zygote, directory: Path, at: int, whole: runs.Run) -> bool:
    directory.parent.mkdir()
    ended = train(zygote, directory, at=at)
    assert ended.status in (0, -signal.SIGKILL), ended.output
    root = directory / runs.CHECKPOINTS
    newest, damaged = checkpoint.latest(root)
    assert damaged == []
    assert [name for name in checkpoint.names(root) if checkpoint.verify(root / name) is not None] == []
    if newest:
        assert len(history.read_history(directory / runs.METRICS)) >= newest.state["history_lines"]
    if ended.status != 0:
        goes_on_as_if_nothing_happened(zygote, directory, whole)
    return ended.status != 0


def test_training_killed_at_any_moment_goes_on_as_if_nothing_had_happened(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path
) -> None:
    whole, known = undisturbed
    for at in share(8, len(known), what="kill training"):
        killed_training(zygote, tmp_path / str(at) / "run", at, whole)


@pytest.mark.long
def test_training_killed_at_every_moment_goes_on_as_if_nothing_had_happened(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path
) -> None:
    whole, known = undisturbed
    walk = (at for at in itertools.count(1) if not killed_training(zygote, tmp_path / str(at) / "run", at, whole))
    assert next(walk) >= 0.9 * len(known)


# A power cut: what the system had not been told to write through is lost, so the order of calls is the promise


def first(moments: list[Moment], start: int, **wanted: str) -> int:
    """The first moment from `start` on with these fields."""
    for index in range(start, len(moments)):
        if all(getattr(moments[index], field) == value for field, value in wanted.items()):
            return index
    raise AssertionError(f"never: {wanted}")


def synced(moments: list[Moment], path: str, *, after: int, before: int) -> bool:
    """Whether a sync of this file or directory began after the one moment, and was done before the other."""
    begun = [index for index in range(after, before) if moments[index][:3] == ("begin", "fsync", path)]
    return bool(begun) and any(moments[index][:3] == ("end", "fsync", path) for index in range(begun[0], before))


def check_order(moments: list[Moment], directory: Path) -> int:
    """Hold every checkpoint of a run that was watched against the rules. Returns how many there were."""
    root = str(directory / runs.CHECKPOINTS)
    published = [
        (index, moment.path, moment.note)
        for index, moment in enumerate(moments)
        if moment.phase == "begin" and moment.call == "rename" and Path(moment.note).name.startswith("epoch_")
    ]
    for named, hidden, final in published:
        inside = {moment.path for moment in moments[:named] if Path(moment.path).parent == Path(hidden)}
        assert {Path(path).name for path in inside} >= {*layout.REQUIRED, layout.MANIFEST}
        for path in inside:
            touched = [i for i in range(named) if moments[i].path == path and moments[i].call in ("open", "write")]
            assert synced(moments, path, after=touched[-1], before=named), f"{path}: bytes before the name"
        opened = [i for i in range(named) if moments[i].call == "open" and moments[i].path in inside]
        assert synced(moments, hidden, after=opened[-1], before=named), "the names inside before the one outside"
        made = [i for i in range(named) if moments[i].call == "mkdir" and moments[i].path == root]
        assert synced(moments, str(directory), after=made[-1], before=named), "and the directory of all checkpoints"
        manifest = first(moments, 0, phase="begin", call="open", path=f"{hidden}/{layout.MANIFEST}")
        assert durable_bytes(moments, str(directory / runs.METRICS), manifest) >= counted_on(moments, final, directory)
        done = first(moments, named, phase="end", call="rename", path=hidden)
        later = [i for i in range(done, len(moments)) if ".tmp-pruned-" in moments[i].note]
        assert synced(moments, root, after=done, before=later[0] if later else len(moments)), "durable, then prune"
    return len(published)


def durable_bytes(moments: list[Moment], path: str, moment: int) -> int:
    """How many bytes of a file that only grows are sure to be on the disk at a moment."""
    size = sure = offered = 0
    for each in moments[:moment]:
        if each.path == path and each.call == "write" and each.phase == "end":
            size += int(each.note)
        elif each.path == path and each.call == "fsync":
            offered, sure = (size, sure) if each.phase == "begin" else (offered, offered)
    return sure


def counted_on(moments: list[Moment], final: str, directory: Path) -> int:
    """The bytes of metrics.jsonl that a checkpoint counts on, by its step: all that was logged up to it."""
    step = int(final[-8:])
    lines = (directory / runs.METRICS).read_bytes().splitlines(keepends=True)
    return sum(
        len(line) for line, read in zip(lines, history.read_history(directory / runs.METRICS)) if read["step"] <= step
    )


def test_everything_is_on_the_disk_before_what_counts_on_it(
    saved: tuple[Path, list[Moment]], undisturbed: tuple[runs.Run, list[Moment]]
) -> None:
    directory, noted = saved
    assert check_order(noted, directory) == COUNT
    whole, noted = undisturbed
    assert check_order(noted, whole.directory) == 4


def test_the_name_of_a_run_is_on_the_disk_before_its_first_checkpoint(
    undisturbed: tuple[runs.Run, list[Moment]],
) -> None:
    whole, noted = undisturbed
    made = first(noted, 0, phase="end", call="mkdir", path=str(whole.directory))
    saving = first(noted, 0, phase="begin", call="mkdir", path=str(whole.checkpoints))
    assert synced(noted, str(whole.directory.parent), after=made, before=saving)


def test_deleting_begins_once_the_new_name_is_on_the_disk(saved: tuple[Path, list[Moment]]) -> None:
    """Or a power cut could bring the checkpoint's name back, and half of it."""
    directory, noted = saved
    deleted = [i for i, moment in enumerate(noted) if moment.phase == "end" and ".tmp-pruned-" in moment.note]
    assert deleted
    for index in deleted:
        emptied = first(noted, index, phase="begin", call="unlink")
        assert synced(noted, str(directory / runs.CHECKPOINTS), after=index, before=emptied)


# A disk that refuses

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.ENOENT, errno.EACCES, errno.ESTALE)


def calls(noted: list[Moment]) -> int:
    return sum(moment.phase == "begin" for moment in noted)


def refused(zygote: Zygote, directory: Path, whole: runs.Run, **fault: object) -> tuple[Ended, list[Moment]]:
    """Train on a disk with a fault, hold what is said against what has to be, and go on with it on a sound one."""
    directory.parent.mkdir()
    log = directory.parent / "moments"
    ended = train(zygote, directory, log=str(log), **fault)
    context = f"{fault}\n{ended.output}"
    assert ended.status in (0, 2), context
    for word in ("Traceback", "Logging error", "Exception in thread"):
        assert word not in ended.output, context
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == (ended.status != 0), context
    assert not errors or ended.output.endswith(f"{errors[0]}\n"), context
    newest, damaged = checkpoint.latest(directory / runs.CHECKPOINTS)
    assert damaged == [], context
    if errors and (directory / runs.RECORD).exists():
        kept = f"{newest.path.name} is kept" if newest else "There is no checkpoint"
        assert kept in errors[0] and f"python resume.py run={directory}" in errors[0], context
    noted = moments(log) if log.exists() else []
    if ended.status == 0:
        assert diff.diff_runs(whole, runs.read(directory)) == [], context
    else:
        goes_on_as_if_nothing_happened(zygote, directory, whole)
    return ended, noted


def check_refused_once(zygote: Zygote, directory: Path, whole: runs.Run, at: int, error: int) -> None:
    ended, noted = refused(zygote, directory, whole, at=at, error=error)
    failed = [moment.path for moment in noted if moment.phase == "fail"]
    last = checkpoint.names(whole.checkpoints)[-1]
    saving = [path for path in failed if "/.tmp-epoch_" in path]
    if saving and last in saving[0]:
        assert ended.status == 2, "what was trained since the newest checkpoint is not kept: that is no success"
    elif saving:
        name = re.search(r"epoch_\d+_step_(\d+)", saving[0])
        assert name and ended.status == 0, ended.output
        told = f"No checkpoint at step {int(name[1])}: {os.strerror(error)}. Training goes on;"
        assert ended.output.count(told) == 1, ended.output
    if not any(".tmp-pruned-" in path or path == str(directory / runs.CHECKPOINTS) for path in failed):
        left = [name for name in entries(directory / runs.CHECKPOINTS) if name.startswith(".tmp-")]
        assert left == [], "what can be removed is"


def test_a_call_that_fails_once_costs_a_line_and_no_bit(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path
) -> None:
    whole, noted = undisturbed
    for at in share(8, calls(noted), what="refuse once"):
        check_refused_once(zygote, tmp_path / str(at) / "run", whole, at, random.Random(f"{SEED} {at}").choice(ERRORS))


@pytest.mark.long
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.ENOENT], ids=errno.errorcode.get)
def test_any_call_that_fails_once_costs_a_line_and_no_bit(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path, error: int
) -> None:
    whole, noted = undisturbed
    for at in range(1, calls(noted) + 1):
        check_refused_once(zygote, tmp_path / str(at) / "run", whole, at, error)


def test_lines_that_the_disk_refuses_are_kept_until_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    metrics = history.History(tmp_path / runs.METRICS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        metrics.append(step=1, epoch=1, values={"val/loss": 1.0})
        with pytest.raises(OSError, match="No space"):
            metrics.sync()
    metrics.append(step=2, epoch=2, values={"val/loss": 2.0})
    metrics.sync()
    metrics.close()
    assert [line["step"] for line in history.read_history(tmp_path / runs.METRICS)] == [1, 2] and metrics.lines == 2


def test_a_disk_that_goes_on_refusing_is_told_and_the_run_goes_on_when_it_is_mended(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path
) -> None:
    whole, noted = undisturbed
    for at in share(5, calls(noted), what="refuse"):
        error = random.Random(f"{SEED} {at}").choice((errno.ENOSPC, errno.EIO, errno.EROFS))
        refused(zygote, tmp_path / str(at) / "run", whole, at=at, error=error, calls=None)


def while_saving(count: int, noted: list[Moment], *, what: str) -> list[int]:
    """Some of the calls from the first that writes a checkpoint to the last."""
    begun = [moment.path for moment in noted if moment.phase == "begin"]
    saving = [number for number, path in enumerate(begun, 1) if "/.tmp-epoch_" in path]
    return sorted(random.Random(f"{SEED} {what}").sample(range(saving[0], saving[-1]), count))


def test_checkpoints_that_somebody_removes_are_missed_and_made_again(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path
) -> None:
    whole, noted = undisturbed
    for at in while_saving(3, noted, what="vanish"):
        directory = tmp_path / str(at) / "run"
        refused(zygote, directory, whole, at=at, vanish=str(directory / runs.CHECKPOINTS))


def test_a_run_directory_that_somebody_removes_ends_the_run_with_one_line_and_is_not_half_made_again(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path
) -> None:
    _, noted = undisturbed
    for at in while_saving(4, noted, what="gone"):
        directory = tmp_path / str(at) / "run"
        directory.parent.mkdir()
        ended = train(zygote, directory, at=at, vanish=str(directory))
        assert ended.status == 2 and "Traceback" not in ended.output, ended.output
        assert ended.output.splitlines()[-1] == f"error: The run directory is gone: {directory}. Start another run."
        assert not directory.exists()


def test_writes_that_take_only_a_half_change_no_bit(
    zygote: Zygote, undisturbed: tuple[runs.Run, list[Moment]], tmp_path: Path
) -> None:
    whole, _ = undisturbed
    assert train(zygote, tmp_path / "run", short=True).status == 0
    assert diff.diff_runs(whole, runs.read(tmp_path / "run")) == []
    assert checkpoint.latest(tmp_path / "run" / runs.CHECKPOINTS)[1] == []


def test_signals_that_interrupt_calls_change_no_bit(tmp_path: Path) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: signals.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        saving.run(tmp_path, 1, COUNT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(signals) > COUNT
    look(tmp_path, COUNT)


# Where files lie, and who may read them


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_every_file_and_directory_of_a_run_follows_the_umask(zygote: Zygote, tmp_path: Path, umask: int) -> None:
    assert zygote.run("train.py", *TRAIN, f"hydra.run.dir={tmp_path}/made/run", umask=umask).status == 0
    paths = [tmp_path / "made", *(tmp_path / "made").rglob("*")]
    assert len(paths) > 20
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    wanted = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}
    assert modes == wanted


def test_no_step_needs_the_systems_temporary_directory(zygote: Zygote, tmp_path: Path) -> None:
    directory, nowhere = tmp_path / "run", tmp_path / "nowhere"
    ended = zygote.run("train.py", *BY_STEP, f"hydra.run.dir={directory}", temporary=nowhere)
    assert ended.status == 0, ended.output
    ended = zygote.run("resume.py", f"run={directory}", "trainer.max_epochs=3", temporary=nowhere)
    assert ended.status == 0 and "resumed from" in ended.output, ended.output
    assert not nowhere.exists()
