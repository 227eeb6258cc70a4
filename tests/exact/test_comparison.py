"""`python -m savepoint verify RUN --exact`: what is not exact is found and named, and what is exact passes."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tools.processes import REPOSITORY
from tools.share import some
from tools.warm import LIBRARIES, Warm
from tools.workshop import copy_repository
from torch._subclasses import FakeTensorMode

from savepoint import __main__, commands, runs
from savepoint.config import composition
from savepoint.errors import UserError
from savepoint.exact import explain, outside, probe, watch, workplace
from savepoint.exact.explain import Trace
from savepoint.exact.workplace import FailedError
from savepoint.training.optimization import NoSchedule, Optimization
from savepoint.training.state import TrainState
from savepoint.trust import strict_yaml

HERE = "src/project/inexact.py"
SOURCE = (REPOSITORY / "tests" / "tools" / "inexact.py").read_text()


@dataclass(frozen=True)
class Room:
    """A repository whose project has tests/tools/inexact.py, and whose runs have never been trained: only their config is read."""

    root: Path
    warm: Warm

    def run(self, *overrides: str, own: dict[str, Any] | None = None) -> Path:
        """own: parts of tests/tools/inexact.py, by their place in the config."""
        small = ("tracker=none", "trainer.threads=1", "data.batch_size=4", "trainer.max_epochs=9")
        config = composition.compose([*small, *overrides], self.root / "conf")
        for path, value in (own or {}).items():
            node: Any = config
            *groups, last = path.split(".")
            for group in groups:
                node = node[group]
            node[last] = value
        directory = self.root / "runs" / "today" / runs.new_id()
        runs.create(directory, id=directory.name, name=None, config=strict_yaml.dump_config(config), overrides=[])
        return directory

    def prove(self, *overrides: str, own: dict[str, Any] | None = None, fresh: bool = False) -> "Proved":
        """fresh: train in interpreters of their own, as a person does, and not in forks of warm processes."""
        directory = self.run(*overrides, own=own)
        before = sorted((path, path.read_bytes()) for path in directory.rglob("*") if path.is_file())
        lines: list[str] = []
        with contextlib.nullcontext() if fresh else self.warm.used("savepoint.exact.workplace"):
            code = commands.verify_exact(self.root, str(directory), say=lines.append)
        assert sorted((path, path.read_bytes()) for path in directory.rglob("*") if path.is_file()) == before
        return Proved(code, [line for line in lines if not line.endswith("…")])


@dataclass(frozen=True)
class Proved:
    code: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    root = tmp_path_factory.mktemp("room")
    copy_repository(root)
    shutil.copy(REPOSITORY / "tests" / "tools" / "inexact.py", root / "src" / "project")
    warm = Warm(tmp_path_factory.mktemp("warm"), *LIBRARIES, "savepoint.exact.trace")
    yield Room(root, warm)
    warm.close()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The place of temporary directories: whatever a command does there, it leaves nothing."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    yield place
    # torch 2.8 writes a module of its own into such a directory, and leaves it there where it is killed.
    assert [each for each in place.iterdir() if not (each / "_remote_module_non_scriptable.py").exists()] == []


def made(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"project.inexact.{name}", **arguments}


def data(name: str) -> dict[str, Any]:
    return {"data.dataset": made(name), "model": made("Model")}


def middle(name: str) -> dict[str, Any]:
    return {"data.dataset": made("Data"), "model": made("Of", middle=name)}


def line_of(text: str) -> str:
    """Where that stands first, as it is told."""
    return f"{HERE}:{SOURCE[: SOURCE.index(text)].count(chr(10)) + 1} "


TWICE, RESUMED = (
    "not exact: two runs of the same seed differ first ",
    "not exact: resumed after update 6, the run differs first ",
)
MIDDLE = "model.middle ({}) gives another output for the same input"

TWO = {"trainer.processes": 2}

FAULTS = {
    "an unseeded generator in a data set": (
        data("UnseededItem"),
        [f"{TWICE}at epoch 1, batch 1: the batch (its [0])", line_of("np.random.default_rng().normal()") + "calls numpy.random.default_rng() without a seed"],
    ),
    "an unseeded generator in a model": (
        middle("NoiseOfItsOwn"),
        [TWICE + "at epoch 1, batch 1: " + MIDDLE.format("NoiseOfItsOwn"), "model.middle.generator: a generator of random numbers"],
    ),
    "the order of a set": (data("SetOrder"), [TWICE, line_of("list({f") + "makes a set: with the same PYTHONHASHSEED"]),
    "the hour": (data("Hour"), [TWICE, line_of("datetime.now()") + "calls datetime.datetime.now(), the clock"]),
    "an operation that is not deterministic": (middle("Memory"), [TWICE, MIDDLE.format("Memory"), "cause: an operation that is not deterministic"]),
    "a gradient that is not deterministic": (middle("Backward"), [TWICE, "the gradient of model.first.bias", "in the backward pass of model.first (Linear) or of what comes after it"]),
    "a counter of the data set's module": (data("CountingModule"), [f"{RESUMED}at epoch 2, batch 3: the batch", "project.inexact.COUNT: "]),
    "a buffer that is not persistent": (middle("NotPersistent"), [f"{RESUMED}at epoch 2, batch 3: " + MIDDLE.format("NotPersistent"), "model.middle.mean: a non-persistent buffer"]),
    "a task's own mean": (data("Data") | {"task": made("Smoothing")}, [RESUMED, "task (Smoothing) gives another loss for the same outputs", "task.mean: "]),
    "a growing buffer": (middle("Growing"), ["not exact: the run goes through from its beginning, and a resume of it fails:", "\ncheckpoints/epoch_0001_step_00000006 does not fit the model", "let the constructor make every parameter and buffer in the shape"]),
    "state in a library": (middle("Library"), [f"{RESUMED}at epoch 2, batch 3: " + MIDDLE.format("Library"), "cause: state that no checkpoint holds"]),
    "a file's time": (data("FileTime"), [f"{TWICE}at epoch 1, batch 1: the batch", "data.train.written: ", "not from a file's time"]),
    "a counter of an own update": (data("Data") | {"task": made("CountingUpdate")}, [f"{RESUMED}at epoch 2, batch 3: task (CountingUpdate) gives another loss", "task.calls: 6 there, 0 after the resume"]),
    "a replay buffer of an own update": (data("Data") | {"task": made("Replaying")}, [f"{RESUMED}at epoch 2, batch 3: task (Replaying) gives another loss", "task.buffer"]),
    "an environment of an own update": (data("Data") | {"task": made("Playing")}, [f"{RESUMED}at epoch 2, batch 3: task (Playing) gives another loss", "task.environment: a generator of random numbers"]),
    "a count of an own evaluation": (data("Data") | {"task": made("Improving")}, [f"{RESUMED}at validation after epoch 2", "task.evaluations: 1 there, 0 after the resume"]),
    "noise in one of two ranks": (middle("NoiseOfOneRank") | TWO, [RESUMED + "at epoch 2, batch 3, in rank 1: " + MIDDLE.format("NoiseOfOneRank"), "model.middle.generator: a generator of random numbers"]),
    "an unseeded generator in two ranks": (data("UnseededItem") | TWO, [f"{TWICE}at epoch 1, batch 1: the batch (its [0])", "calls numpy.random.default_rng() without a seed"]),
    "a count of an own evaluation in two ranks": (data("Data") | TWO | {"task": made("Improving")}, [f"{RESUMED}at validation after epoch 2, batch 4: task (Improving)", "task.evaluations: 1 there, 0 after the resume"]),
    "a count of a model that is cut": (data("Data") | TWO | {"trainer.parallel": "fsdp", "model": made("Counted")}, [f"{RESUMED}at epoch 2, batch 3: model (Counted) gives another output for the same input, though each", "same\n  model.calls: 6 there, 0 after the resume\n  to do: "]),
    "an optimizer's own count": (data("Data") | {"optimizer": made("Momentum", _partial_=True)}, [f"{RESUMED}after update 7: ", "optimizer.steps: 6 there, 0 after the resume"]),
}  # fmt: skip


FRESH = "an unseeded generator in a data set"  # in interpreters of their own, as a person does
# In `make test` one of each kind: of two runs and after a resume; in model, gradient, optimizer, update and evaluation.
FEW = (
    "the order of a set",
    "an unseeded generator in a model",
    "a gradient that is not deterministic",
    "a file's time",
    "an optimizer's own count",
    "a growing buffer",
    "a replay buffer of an own update",
    "a count of an own evaluation",
    "noise in one of two ranks",
    "a count of a model that is cut",
)


@pytest.mark.parametrize("fault", some(FAULTS, lambda fault: fault in FEW))
def test_what_is_not_exact_is_named(room: Room, fault: str) -> None:
    own, told = FAULTS[fault]
    proved = room.prove(own=own, fresh=fault == FRESH)
    assert proved.code == 1
    assert all(each in proved.text for each in told), proved.text
    assert proved.lines[-1].startswith("  to do: ")


def test_data_that_differ_in_a_worker_are_named(room: Room) -> None:
    proved = room.prove("data.num_workers=2", own=data("OfWorker"))
    assert proved.code == 1 and "  the data set gives other samples in a loading worker" in proved.lines


SOUND = {
    "augmentation and workers": (("experiment=digits_cnn", "data.num_workers=2", "data.dataset.limit=200"), {}),
    "tied weights, float16, accumulation": (
        ("experiment=characters", "amp=fp16", "trainer.accumulate=3", "model.width=16", "trainer.ema_decay=0.9"),
        {},
    ),
    "a search": (("experiment=diabetes", "optimizer=lbfgs", "~optimizer.weight_decay"), {}),
    "an own update": ((), data("Data") | {"task": made("OwnUpdate")}),
    "an own evaluation, by steps": (
        ("trainer.evaluate_every_n_steps=1", "trainer.evaluate_first=true", "scheduler=plateau"),
        data("Data") | {"task": made("OwnEvaluation")},
    ),
    "two ranks": (("trainer.processes=2", "data.num_workers=1", "data.dataset.limit=200", "amp=fp16"), {}),
    "two ranks, cut by rows": (
        ("trainer.processes=2", "trainer.parallel=fsdp", "trainer.ema_decay=0.9", "data.dataset.limit=200"),
        {},
    ),
    "an own evaluation in two ranks": (("trainer.processes=2",), data("Data") | {"task": made("OwnEvaluation")}),
    "a registered counter, and a cache that changes nothing": (
        (),
        data("Lazy") | {"model": made("Of", middle="Registered")},
    ),
}


@pytest.mark.parametrize("kind", some(SOUND, lambda kind: kind not in ("a search", "two ranks")))
def test_what_is_exact_passes(room: Room, kind: str) -> None:
    overrides, own = SOUND[kind]
    proved = room.prove(*overrides, own=own, fresh=kind == "augmentation and workers")
    assert proved.code == 0, proved.text
    (line,) = proved.lines
    ranks = " by 2 ranks" if "two ranks" in kind else ""
    assert line.startswith(
        f"exact: 8 updates in 2 epochs{ranks}, and again in another process, and resumed after update 6 in a third"
    )
    assert line.endswith(" values compared, none differs.")


def test_an_epoch_of_one_update_is_resumed_at_its_end(room: Room) -> None:
    proved = room.prove("data.batch_size=40", own=data("Data"))
    assert proved.code == 0 and "exact: 2 updates in 2 epochs" in proved.text
    assert "and resumed at the end of epoch 1 in a third" in proved.text


def test_what_had_no_effect_is_told_and_no_fault(room: Room) -> None:
    proved = room.prove(own=middle("Unused"))
    assert proved.code == 0
    note = "not in the checkpoint, though nothing depended on it in these updates: model.middle.calls: 16 there, 6 after the resume"
    assert proved.lines[1:] == [f"  {note}"]


def test_a_training_that_fails_is_shown(room: Room) -> None:
    proved = room.prove(own=data("Data") | {"model": made("Of", middle="Failing")})
    assert proved.code == 1
    assert proved.text.startswith("The training ended with exit code 1. Its last lines:\n")
    assert "ArithmeticError" in proved.text and "inexact.py" in proved.text
    assert proved.lines[-1] == "This training fails by itself, so nothing could be compared."
    with pytest.raises(UserError, match=r"^data.batch_size=400 exceeds the training set \(40 samples\)"):
        room.prove("data.batch_size=400", own=data("Data"))


def test_a_rank_that_fails_is_shown(room: Room) -> None:
    proved = room.prove(own=middle("FailingInOneRank") | TWO)
    assert proved.code == 1
    assert "\nArithmeticError" in proved.text.replace("[rank1]: ", "\n") and "inexact.py" in proved.text


def test_a_rank_that_waits_for_one_that_has_failed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "PATIENCE_SECONDS", 0.1)
    codes = ("import time; time.sleep(50)", "raise SystemExit(3)")
    ranks = [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for code in codes]
    (tmp_path / "first.rank-1.output").write_text("the last line")
    place = workplace.Workplace(tmp_path, REPOSITORY, {"trainer": {"processes": 2}}, {"first": ranks})
    with pytest.raises(FailedError, match=r"^The training ended with exit code 3\. Its last lines:\nthe last line$"):
        place.end("first")
    assert ranks[0].wait() == -signal.SIGKILL


def test_ranks_that_torchrun_starts_give_one_report(
    room: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(room.run("data.dataset.limit=40")), "--exact"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert __main__.main(command) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    with room.warm.used("savepoint.exact.workplace"):
        assert __main__.main(command) == 0
    *_, report = capsys.readouterr().out.splitlines()
    assert report.startswith("exact: 8 updates in 2 epochs by 2 ranks, and again in another process")


def test_a_training_that_dies_is_told_by_its_signal_and_its_last_lines(room: Room) -> None:
    proved = room.prove(own=middle("Dying"))
    assert proved.code == 1
    assert proved.lines[0].startswith("The training was killed by SIGABRT. Its last lines:\n")
    assert "about to die" in proved.lines[0]


@pytest.mark.parametrize(
    "status, output, message",
    [
        (-9, "", "The training was killed by SIGKILL. It printed nothing."),
        (1, "one\ntwo", "The training ended with exit code 1. Its last lines:\none\ntwo"),
        (-200, "", "The training ended with exit code -200. It printed nothing."),
    ],
)
def test_a_failed_training_is_described(status: int, output: str, message: str) -> None:
    assert str(FailedError(status, output)) == message


def nested(*values: float, layout: torch.layout = torch.strided) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.tensor([value]) for value in values], layout=layout)


def fake(size: int) -> Any:
    with FakeTensorMode():
        return torch.empty(size)


DIGESTED = {
    "meta": (lambda: torch.empty(3, device="meta"), lambda: torch.empty(4, device="meta")),
    "fake": (lambda: fake(3), lambda: fake(4)),
    "nested": (lambda: nested(1.0, 2.0), lambda: nested(1.0, 3.0)),
    "jagged": (lambda: nested(1.0, 2.0, layout=torch.jagged), lambda: nested(1.0, 3.0, layout=torch.jagged)),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
                  lambda: torch.quantize_per_tensor(torch.ones(2) * 2, 0.2, 0, torch.quint8)),
    "sparse": (lambda: torch.eye(2).to_sparse(), lambda: (2 * torch.eye(2)).to_sparse()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", DIGESTED)
def test_no_kind_of_tensor_hides_a_difference(kind: str) -> None:
    one, other = DIGESTED[kind]
    assert probe.digest((one(),)) == probe.digest((one(),)) != probe.digest((other(),))


def test_values_that_cannot_be_read_are_told() -> None:
    class Unreadable(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            if function is torch.Tensor.detach:
                raise RuntimeError("the values are elsewhere")
            return super().__torch_function__(function, types, arguments, keywords or {})

    with pytest.raises(
        UserError, match=r"^A value of the class Unreadable cannot be compared: the values are elsewhere$"
    ):
        probe.digest(torch.ones(2).as_subclass(Unreadable))


def test_a_config_that_may_not_be_built_is_refused_before_anything_runs(room: Room) -> None:
    directory = room.run(own=data("Data"))
    config = directory / runs.CONFIG
    config.write_text(config.read_text().replace("project.inexact.Model", "os.system"))
    with pytest.raises(UserError, match=r"model\._target_: "):
        commands.verify_exact(room.root, str(directory))


@pytest.mark.parametrize(
    "number", some((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), lambda number: number == signal.SIGTERM)
)
def test_a_signal_ends_all_of_it(room: Room, temporary: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "savepoint", "verify", "--exact", str(room.run(own=data("Data")))],
        env=os.environ | {"PYTHONPATH": str(room.root / "src"), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(temporary.glob("*/first.trace")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and error == "\nStopped.\n"


def test_the_command_takes_the_option_before_and_after_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["verify", "nosuchrun", "--exact"], ["verify", "--exact", "nosuchrun"]):
        assert __main__.main(arguments) == 2
        assert "No run nosuchrun." in capsys.readouterr().err
    assert __main__.main(["verify", "--exact"]) == 2
    assert "is no command" in capsys.readouterr().err


# The pieces


@pytest.mark.parametrize(
    "batches, accumulate, planned",
    [(100, 1, (4, 4, 6)), (100, 3, (11, 4, 6)), (3, 1, (3, 3, 4)), (2, 1, (2, 2, 3)), (1, 1, (1, 1, 1)), (5, 4, (5, 2, 3))],
)  # fmt: skip
def test_the_checkpoint_is_in_the_second_epoch_and_not_at_its_end(
    batches: int, accumulate: int, planned: tuple[int, int, int]
) -> None:
    assert watch.planned(batches, accumulate) == planned


def traced(*records: tuple[str, dict[str, str]], at: str = "epoch 1, batch 1") -> Trace:
    classes = {"task": ["Classification", "project.tasks.classification"], "data": ["Digits", "project.data.digits"],
               "model": ["Cnn", "project.models.cnn"], "model.head": ["Linear", "torch.nn.modules.linear"]}  # fmt: skip
    lines = [{"at": at, "kind": kind, "values": values} for kind, values in records]
    return Trace({"classes": classes, "files": {}}, lines)


@pytest.mark.parametrize(
    "kind, names, told",
    [
        ("batch", ["batch"], "the batch"),
        ("batch", ["batch.image"], "the batch (its .image)"),
        ("input", ["model.head"], "model.head (Linear) is given another input: by model (Cnn)"),
        ("input", ["model"], "model (Cnn) is given another input: by task (Classification)"),
        ("output", ["model.head"], "model.head (Linear) gives another output for the same input"),
        ("output", ["model"], "model (Cnn) gives another output for the same input, though each module in it gives the same"),
        ("loss", ["loss", "sums"], "task (Classification) gives another loss, sums for the same outputs of the model"),
        ("metrics", ["accuracy"], "task (Classification) computes another accuracy from the same sums"),
        ("state", ["model.head.weight", "model.head.bias"], "model.head.weight and 1 more, though its gradients are the same"),
        ("state", ["rng.torch"], "the generator of torch: something drew from it another number of times"),
    ],
)  # fmt: skip
def test_the_first_difference_is_told_by_what_it_is(kind: str, names: list[str], told: str) -> None:
    same = ("batch", {"before": "0"})
    a = traced(same, (kind, dict.fromkeys(names, "1")), ("batch", {"after": "1"}))
    b = traced(same, (kind, dict.fromkeys(names, "2")), ("batch", {"after": "2"}))
    found = explain.first(a, b)
    assert found is not None and found.index == 1
    assert explain.what(found, a.about) == told


def test_traces_of_another_course_differ() -> None:
    one, longer = traced(("batch", {"batch": "0"})), traced(("batch", {"batch": "0"}), ("batch", {"batch": "0"}))
    assert explain.first(one, one) is None
    for other in (longer, traced(("loss", {"batch": "0"})), traced(("batch", {"other": "0"}))):
        found = explain.first(one, other)
        assert found is not None and found.kind == "course"


def test_suspects_begin_with_those_of_whoever_is_responsible() -> None:
    outside = {"model.count": ["1", "1"], "model.head.cache": ["1", "2 entries"], "model.head.cache[3]": ["1", "1"], "data.train.count": ["1", "5"]}  # fmt: skip
    a, b = (
        traced(("state", {}), ("output", {"model.head": "1"})),
        traced(("state", {}), ("output", {"model.head": "2"})),
    )
    a.records[0]["outside"] = outside
    b.records[0]["outside"] = {name: ["0", "0"] for name in outside}
    found = explain.first(a, b)
    assert found is not None
    assert explain.suspects(a, b, found, here="here", there="there") == [
        ("model.head.cache", "2 entries here, 0 there")
    ]


OUTSIDE = {
    "SeededOwn": "data.train.generator", "UnseededTorch": "data.train.generator", "CountingClass": "project.inexact.CountingClass.count",
    "CountingIterator": "data.train.numbers", "Lazy": "data.train.cache",
    "Calls": "model.middle.calls", "NotPersistent": "model.middle.mean", "Attribute": "model.middle.mean",
    "Global": "project.inexact.SEEN", "Closure": "model.middle.advance.count", "Generating": "model.middle.numbers",
    "Hooked": "model.middle.layer._forward_hooks.count", "HookedParameter": "model.middle.layer.weight's hooks[0].count",
    "Bound": "model.middle.advance.count", "Context": "project.inexact.STEP", "Annotated": "project.inexact.COUNT",
    "Default": "project.inexact.Default.forward's default 0", "Unlisted": "model.middle.layers[0].weight",
    "Momentum": "optimizer.steps", "Warming": "scheduler.steps", "Smoothing": "task.mean",
    "Registered": None, "Model": None, "Data": None,
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_a_run_keeps_outside_of_its_state_is_found_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Surveyed before and after a step; an optimizer's and a model's own state is not among what has changed."""
    mine = project_module(monkeypatch)
    built = getattr(mine, name, None)
    model = mine.Of(name) if issubclass(built, mine.Middle) else mine.Model()
    dataset = built("train") if issubclass(built, mine.Data) else mine.Data("train")
    task = built() if name == "Smoothing" else mine.Smoothing()
    optimizer = built(model.parameters()) if name == "Momentum" else torch.optim.AdamW(model.parameters())
    scheduler = built(optimizer) if name == "Warming" else NoSchedule()
    state = TrainState(model, {"": Optimization(optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False))})
    if name == "Registered":
        state.registered["counter"] = model.middle.counter
    parts = SimpleNamespace(task=task, train=SimpleNamespace(dataset=dataset), val=SimpleNamespace(dataset=dataset))
    before = outside.survey(state, parts, package="project")
    batch = torch.stack([dataset[index][0] for index in range(4)]), torch.tensor([0, 1, 0, 1])
    mean = task.mean
    task(model, batch).loss.backward()
    task.mean = task.mean if name == "Smoothing" else mean
    optimizer.step()
    scheduler.step()
    after = outside.survey(state, parts, package="project")
    changed = {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)}
    changed -= {each for each in changed if each.startswith(("optimizer._", "scheduler._"))}
    assert (OUTSIDE[name] in changed) if OUTSIDE[name] else not changed, changed


def project_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tests/tools/inexact.py as a module of a project, anew for each test."""
    spec = importlib.util.spec_from_file_location("project.inexact", REPOSITORY / "tests" / "tools" / "inexact.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "project.inexact", module)
    spec.loader.exec_module(module)
    return module


CALLS = """
import datetime, os, random, secrets, time, uuid
from datetime import datetime as moment, date
import numpy, torch

random.Random(3), numpy.random.default_rng(3), numpy.random.RandomState(3), numpy.random.seed(3), random.seed(3)
time.strftime("%H", time.gmtime(0)), moment(2020, 1, 1), torch.Generator().manual_seed(3), moment.fromtimestamp(3)
random.Random()
random.SystemRandom()
numpy.random.default_rng()
numpy.random.RandomState(None)
numpy.random.Generator(numpy.random.PCG64())
numpy.random.seed()
random.seed()
torch.Generator().seed()
torch.seed()
os.urandom(1)
secrets.token_hex()
uuid.uuid4()
time.time()
time.perf_counter_ns()
datetime.datetime.now()
date.today()
time.strftime("%H")
class Own(random.Random): pass
assert isinstance(Own(3), Own) and isinstance(random.Random(3), random.Random) and type(moment.now()) is type(moment(1, 1, 1))
assert isinstance(numpy.random.mtrand._rand, numpy.random.RandomState)
assert isinstance(torch.default_generator, torch.Generator)
assert (moment.now() - moment.fromtimestamp(time.time())).total_seconds() < 9
assert time.mktime(time.localtime()) - os.stat(__file__).st_mtime > 900_000
assert time.time() - os.stat(__file__).st_mtime > 900_000
"""


def test_traps_note_the_lines_that_ask_for_the_unseeded_and_change_nothing_else(tmp_path: Path) -> None:
    notes = under_traps(tmp_path, CALLS)
    lines = [int(line.partition("\t")[0].rpartition(":")[2]) for line in notes.splitlines()]
    first = CALLS.splitlines().index("random.Random()") + 1
    assert [line for line in lines if line < first + 17] == list(range(first, first + 17))
    assert json.dumps(notes).count("without a seed") == 6


# What C extensions and type checks depend on, and what looks like an unseeded source and is none.
HARMLESS = """
import copy, datetime, pickle, random, tempfile, time
import numpy, torch
from sklearn.utils import check_random_state

for made, kind in {
    datetime.datetime(2020, 1, 1): datetime.datetime, datetime.date(2020, 1, 1): datetime.date,
    random.Random(3): random.Random, numpy.random.PCG64(3): numpy.random.PCG64,
    numpy.random.RandomState(3): numpy.random.RandomState,
}.items():
    assert type(made) is kind and type(kind) is type, kind

class Stamp(datetime.datetime): pass
class Dice(random.Random): pass
class Bits(numpy.random.PCG64): pass
class Generator(numpy.random.Generator): pass
class TorchGenerator(torch.Generator): pass
assert type(Stamp.fromtimestamp(3)) is Stamp
assert isinstance(Dice(3), random.Random) and Dice(3).random() == random.Random(3).random()
assert isinstance(Generator(Bits(3)), numpy.random.Generator) and isinstance(TorchGenerator(), torch.Generator)
assert check_random_state(3).randint(9) == numpy.random.RandomState(3).randint(9)
assert copy.deepcopy(random.Random(3)).random() == random.Random(3).random()
assert copy.deepcopy(numpy.random.default_rng(3)).random() == numpy.random.default_rng(3).random()
assert pickle.loads(pickle.dumps(numpy.random.default_rng(3))).random() == numpy.random.default_rng(3).random()
assert pickle.loads(pickle.dumps(time.time)) is time.time
tempfile.TemporaryFile().close()

class Names:
    now, seed = 1, 2
match 2:
    case Names.now: raise AssertionError
    case Names.seed: pass
"""

# Wrapped functions behave as the real ones do: in a class body they do not become methods.
CLOCKS = """
import time
from datetime import datetime

class Timer:
    clock = time.perf_counter
class Stamp(datetime): pass
assert Timer().clock() > 0
assert type(Stamp.now()) is Stamp and (Stamp.now() - Stamp.fromtimestamp(time.time())).total_seconds() < 9
now = datetime.now
assert now().year >= 2020
"""


def under_traps(folder: Path, source: str) -> str:
    """Import `source` as a module of a project while traps are set. Returns: the notes."""
    project, notes = folder / "project", folder / "notes"
    project.mkdir()
    notes.touch()
    (project / "__init__.py").touch()
    (project / "mine.py").write_text(source)
    install = (
        "from pathlib import Path; from savepoint.exact.traps import Traps; "
        f"Traps(Path({str(project)!r}), Path({str(notes)!r}), clock_offset=1_000_000).install(); import project.mine"
    )
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY / 'src'}"}
    done = subprocess.run([sys.executable, "-c", install], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return notes.read_text()


def test_traps_replace_no_class_and_note_nothing_that_is_seeded(tmp_path: Path) -> None:
    assert under_traps(tmp_path, HARMLESS) == ""


def test_watched_clocks_work_as_the_real_ones_do(tmp_path: Path) -> None:
    assert under_traps(tmp_path, CLOCKS).count("the clock") == 3
