"""What a short run computes, value by value in the order of computation, as digests: for `verify --exact` to compare.

    python -m savepoint.exact.trace <order.json>

trains the run in a directory, from its beginning or from its newest checkpoint, for two short epochs, and writes a line
for each thing that was computed. Nothing that is recorded is changed, and no random number is drawn for it.
"""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from savepoint import checkpoint, config, fingerprint, job, plain, run
from savepoint.batches import Batches
from savepoint.errors import UserError
from savepoint.exact import outside, traps
from savepoint.state import Parts, TrainState, capture
from savepoint.stream import Stream
from savepoint.task import Outcome
from savepoint.trackers.none import NoTracker

EPOCHS, WINDOWS, VALIDATION = 2, 4, 4  # epochs; updates in each; batches of each evaluation
LONG = 64  # items of a list from which on it is one value


class Order(NamedTuple):
    """What one process is asked to do, and where it writes. ahead: see `traps.Traps`."""

    directory: str
    repository: str
    trace: str
    notes: str
    ahead: int
    resume: bool
    workers: int


def planned(batches: int, accumulate: int) -> tuple[int, int, int]:
    """How long a short epoch is. Returns: its batches, its updates, and the update after which a checkpoint is saved.

    Its last window is shorter than the others where that can be. The checkpoint is in the middle of the second epoch:
    after an evaluation, and with updates to come that need what it holds. At the end of the first, if one is all.
    """
    short = min(batches, WINDOWS * accumulate - (accumulate > 1))
    updates = -(-short // accumulate)
    return short, updates, updates + updates // 2


class Trace:
    """Where the records go, one JSON object a line: {"at", "kind", "values"}, and {"outside"} beside a state."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self.at = ""

    def record(self, kind: str, values: Mapping[str, Any], **more: Any) -> None:
        digests = {name: digest(value) for name, value in values.items()}
        self.write({"at": self.at, "kind": kind, "values": digests} | more)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


class Watch:
    """What `job.Job.watch` is: shortens the run, and records what passes between its parts."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.validating = False
        self._window: list[int] = []
        self._forwards = 0

    def __call__(self, state: TrainState, parts: Parts) -> Parts:
        self.state, self.parts = state, parts
        self.trace.write(about(state, parts))
        settings = parts.settings
        short, updates, saved = planned(len(parts.train), settings.trainer.accumulate)
        ends = dataclasses.replace(settings.trainer, max_epochs=EPOCHS, max_steps=None, patience=None, profile=False)
        never = dict.fromkeys(("every_n_epochs", "every_n_steps", "every_n_minutes"))
        due = {"every_n_epochs": 1} if updates == 1 else {"every_n_steps": saved}
        cadence = dataclasses.replace(settings.checkpoint, **(never | due))  # type: ignore[arg-type]
        if not settings.trainer.compile:  # hooks would break what is compiled into pieces
            self._hook("model", state.model)
            if state.averaged is not None:
                self._hook("average", state.averaged.module)
        state.optimizer.register_step_post_hook(self._updated)
        train = parts.train.first(short)
        if isinstance(train, Stream):
            state.stream = train
        return dataclasses.replace(
            parts,
            settings=dataclasses.replace(settings, trainer=ends, checkpoint=cadence),
            task=_Task(self, parts.task),
            train=_Training(self, train),  # type: ignore[arg-type]  # they stand for the batches
            val=_Validation(self, parts.val.first(VALIDATION)),  # type: ignore[arg-type]
        )

    def _hook(self, root: str, model: nn.Module) -> None:
        for name, module in model.named_modules():
            path = f"{root}.{name}".rstrip(".")
            module.register_forward_pre_hook(self._given(path), with_kwargs=True)
            module.register_forward_hook(self._gave(path))

    def _given(self, path: str) -> Callable[..., None]:
        return lambda _module, arguments, keywords: self.trace.record("input", {path: (arguments, keywords)})

    def _gave(self, path: str) -> Callable[..., None]:
        return lambda _module, _arguments, output: self.trace.record("output", {path: output})

    def _updated(self, *_: Any) -> None:
        """The gradients that an update used, last layer first, as they were computed."""
        named = reversed([*self.state.model.named_parameters()])
        self.trace.record("gradient", {f"model.{name}": each.grad for name, each in named if each.grad is not None})

    def between(self) -> None:
        """The whole state, between two updates: what a checkpoint would hold here, and what it would not."""
        state = self.state
        ended = f"the end of epoch {state.epoch}" if state.epoch else "the start"
        self.trace.at = f"update {state.step}" if state.batch else ended
        model, tree = capture(state)
        values = dict(leaves({"model": model} | {name: each for name, each in tree.items() if name != "rng"}))
        values |= {f"rng.{name}": each for name, each in tree["rng"].items()}
        self.trace.record("state", values, step=state.step, outside=outside.survey(state, self.parts))

    def batch(self, number: int, batch: Any) -> None:
        if number == self.state.batch:  # the first of a window
            self._window, self._forwards = [], 0
        self._window.append(number)
        self._at(number)
        self.trace.record("batch", dict(leaves(batch, "batch")))

    def forward(self) -> None:
        """A forward pass of training is about to begin: of which batch? A search goes through a window again."""
        if self.validating:
            return
        self._at(self._window[self._forwards % len(self._window)])
        self._forwards += 1

    def _at(self, number: int) -> None:
        self.trace.at = f"epoch {self.state.epoch + 1}, batch {number + 1}"


class _Training:
    """The batches of the training split, and a record of each."""

    def __init__(self, watch: Watch, batches: Batches | Stream) -> None:
        self._watch, self._batches = watch, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Any]:
        # Asked for the first batch of a window, the loop has made the update before: here the state is whole.
        self._watch.between()
        self._watch.validating = False
        for number, batch in enumerate(self._batches.epoch(epoch, start=start), start=start):
            if number > start and number == self._watch.state.batch:
                self._watch.between()
            self._watch.batch(number, batch)
            yield batch


class _Validation(_Training):
    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Any]:
        self._watch.between()
        self._watch.validating = True
        for number, batch in enumerate(self._batches.epoch(epoch, start=start)):
            self._watch.trace.at = f"validation after epoch {epoch + 1}, batch {number + 1}"
            self._watch.trace.record("batch", dict(leaves(batch, "batch")))
            yield batch


class _Task:
    """A task, and a record of what it says."""

    def __init__(self, watch: Watch, task: Any) -> None:
        self._watch, self._task = watch, task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def __call__(self, model: Callable[..., Any], batch: Any) -> Outcome:
        trace = self._watch.trace
        self._watch.forward()

        def compiled(*arguments: Any, **keywords: Any) -> Any:
            trace.record("input", {"model": (arguments, keywords)})
            output = model(*arguments, **keywords)
            trace.record("output", {"model": output})
            return output

        outcome: Outcome = self._task(compiled if self._watch.parts.settings.trainer.compile else model, batch)
        trace.record("loss", {"loss": outcome.loss, "samples": outcome.samples, "sums": dict(outcome.sums)})
        return outcome

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        values: dict[str, float] = self._task.compute(sums, samples)
        self._watch.trace.record("metrics", values)
        return values


def about(state: TrainState, parts: Parts) -> dict[str, Any]:
    """The classes of everything that can be responsible: by name, [class, its module]; and the project's files."""
    things = {
        "task": parts.task,
        "data": parts.train.dataset,
        "optimizer": state.optimizer,
        "scheduler": state.scheduler,
    }
    for name, module in state.model.named_modules():
        things[f"model.{name}".rstrip(".")] = module
    mine = [module for name, module in sys.modules.items() if name.split(".")[0] == "project"]
    files = {module.__name__: module.__file__ for module in mine if getattr(module, "__file__", None)}
    classes = {name: [type(each).__qualname__, type(each).__module__] for name, each in things.items()}
    return {"classes": classes, "files": files, "deterministic": parts.settings.trainer.deterministic}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings and sequences, by name."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple) and 0 < len(value) <= LONG:
        for index, each in enumerate(value):
            yield from leaves(each, f"{path}[{index}]")
    else:
        yield path, value


def digest(value: Any) -> str:
    """Of anything. What has no values that could be read here (of a fake tensor, say) counts by its class alone."""
    try:
        return fingerprint.of(outside.contents(value))[:16]
    except (RuntimeError, NotImplementedError):
        return type(value).__qualname__


def main(arguments: list[str]) -> int:
    order = Order(**json.loads(Path(arguments[0]).read_bytes()))
    logging.getLogger("savepoint").setLevel(logging.WARNING)
    trace = Trace(Path(order.trace))
    watch = Watch(trace)
    try:
        traps.Traps(Path(order.repository) / "src" / "project", Path(order.notes), ahead=order.ahead).install()
        _train(order, watch)
        watch.between()
    except UserError as error:
        print(f"error: {plain.printable(str(error))}", file=sys.stderr)
        return 2
    finally:
        trace.close()
    return 0


def _train(order: Order, watch: Watch) -> None:
    repository, directory = Path(order.repository), Path(order.directory)
    chosen = plain.parse((directory / run.CONFIG).read_bytes())
    chosen["data"]["num_workers"] = order.workers
    settings = config.check(chosen, source=repository / "src")
    newest = checkpoint.latest(directory / run.CHECKPOINTS)[0] if order.resume else None
    job.train(job.Job(run.read(directory), chosen, settings, NoTracker(), repository, watch=watch), resumed=newest)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # At once: what is traced and what traces it refer to each other, and loading workers that nobody has let go of make
    # an orderly exit wait for ever.
    os._exit(code)
