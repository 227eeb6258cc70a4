"""Record digests of what passes between the parts of a short run: batches, inputs, outputs, losses, gradients, states.

Recording changes no value and draws no random number.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from savepoint.data import Batches, Stream
from savepoint.exact import outside, probe
from savepoint.training import Outcome, Parts, Step, TrainState, capture, class_of

EPOCHS, WINDOWS, VALIDATION = 2, 4, 4  # epochs; updates in each; batches of each evaluation


def planned(batches: int, accumulate: int) -> tuple[int, int, int]:
    """Plan a short epoch. Returns: its batches, its updates, and the update after which a checkpoint is saved.

    batches: in an epoch of the run. accumulate: batches in an update. The last update has fewer where possible.
    The checkpoint is in the middle of the second epoch, after an evaluation and before updates that need what it holds.
    If an epoch has one update, the checkpoint is at the end of the first epoch.
    """
    short = min(batches, WINDOWS * accumulate - (accumulate > 1))
    updates = -(-short // accumulate)
    return short, updates, updates + updates // 2


class Trace:
    """A file of records, one JSON object a line: {"at", "kind", "values"}, and {"outside"} beside a state."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self.at = ""

    def record(self, kind: str, values: Mapping[str, Any], **more: Any) -> None:
        digests = {name: probe.digest(value) for name, value in values.items()}
        self.write({"at": self.at, "kind": kind, "values": digests} | more)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


class Watch:
    """Shortens a run to two short epochs, and records what passes between its parts. package: the project's own."""

    def __init__(self, trace: Trace, package: str) -> None:
        self.trace, self.package = trace, package
        self.validating = False
        self._window: list[int] = []
        self._forwards = 0

    def __call__(self, state: TrainState, parts: Parts) -> Parts:
        """Put hooks into a run that was built. Returns: the parts with which it is short and recorded."""
        self.state, self.parts = state, parts
        self.trace.write(about(state, parts, package=self.package))
        settings = parts.settings
        short, updates, saved = planned(len(parts.train), settings.trainer.accumulate)
        ends = dataclasses.replace(
            settings.trainer,
            max_epochs=EPOCHS,
            max_steps=None,
            patience=None,
            profile=False,
            # A run that evaluates by steps does so in the middle of each short epoch.
            evaluate_every_n_steps=settings.trainer.evaluate_every_n_steps and max(1, updates // 2),
        )
        never = dict.fromkeys(("every_n_epochs", "every_n_steps", "every_n_minutes"))
        due = {"every_n_epochs": 1} if updates == 1 else {"every_n_steps": saved}
        cadence = dataclasses.replace(settings.checkpoint, **(never | due))  # type: ignore[arg-type]
        if not settings.trainer.compile:  # hooks would break what is compiled into pieces
            self._hook("model", state.model)
            if state.averaged is not None:
                self._hook("average", state.averaged.module)
        for one in state.optimizers.values():
            one.optimizer.register_step_post_hook(self._updated)
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
        """Record the gradients that an update used, last layer first, which is the order of computation."""
        named = reversed([*self.state.model.named_parameters()])
        self.trace.record("gradient", {f"model.{name}": each.grad for name, each in named if each.grad is not None})

    def between(self, *, evaluating: bool = False) -> None:
        """Record the whole state between two updates: what a checkpoint would hold here, and what it would not."""
        state = self.state
        ended = f"the end of epoch {state.epoch}" if state.epoch else "the start"
        # An evaluation has the model in another mode.
        self.trace.at = (f"update {state.step}" if state.batch else ended) + ", before its evaluation" * evaluating
        model, tree = capture(state)
        values = dict(probe.leaves({"model": model} | {name: each for name, each in tree.items() if name != "rng"}))
        values |= {f"rng.{name}": each for name, each in tree["rng"].items()}
        others = outside.survey(state, self.parts, package=self.package)
        self.trace.record("state", values, step=state.step, outside=others)

    def batch(self, number: int, batch: Any) -> None:
        if number == self.state.batch:  # the first of a window
            self._window, self._forwards = [], 0
        self._window.append(number)
        self._at(number)
        self.trace.record("batch", dict(probe.leaves(batch, "batch")))

    def forward(self) -> None:
        """Set the place of the coming forward pass: its batch. A searching optimizer goes through a window again."""
        if self.validating:
            return
        self._at(self._window[self._forwards % len(self._window)])
        self._forwards += 1

    def _at(self, number: int) -> None:
        self.trace.at = f"epoch {self.state.epoch + 1}, batch {number + 1}"


class _Training:
    """Stands in for the batches of the training split, and records each as the loop asks for it."""

    def __init__(self, watch: Watch, batches: Batches | Stream) -> None:
        self._watch, self._batches = watch, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, *, start: int = 0, **order: Any) -> Iterator[Any]:
        # When the loop asks for the first batch of a window, the update before it is done and the state is whole.
        self._watch.between()
        for number, batch in enumerate(self._batches.epoch(epoch, start=start, **order), start=start):
            self._watch.validating = False
            if number > start and number == self._watch.state.batch:
                self._watch.between()
            self._watch.batch(number, batch)
            yield batch


class _Validation(_Training):
    @property
    def whole(self) -> "_Validation":
        return _Validation(self._watch, self._batches.whole)

    def epoch(self, epoch: int, *, start: int = 0, **order: Any) -> Iterator[Any]:
        self._watch.between(evaluating=True)
        self._watch.validating = True
        for number, batch in enumerate(self._batches.epoch(epoch, start=start, **order)):
            self._watch.trace.at = f"validation after epoch {epoch + 1}, batch {number + 1}"
            self._watch.trace.record("batch", dict(probe.leaves(batch, "batch")))
            yield batch


class _Task:
    """Stands in for a task, and records its outcomes and metrics."""

    def __init__(self, watch: Watch, task: Any) -> None:
        self._watch, self._task = watch, task
        # The loop asks whether a task has these.
        if hasattr(task, "update"):
            self.update = self._update
        if hasattr(task, "evaluate"):
            self.evaluate = self._evaluate

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

        return self._recorded(self._task(compiled if self._watch.parts.settings.trainer.compile else model, batch))

    def _recorded(self, outcome: Outcome) -> Outcome:
        values = {"loss": outcome.loss, "samples": outcome.samples, "sums": dict(outcome.sums)}
        self._watch.trace.record("loss", values)
        return outcome

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        values: dict[str, float] = self._task.compute(sums, samples)
        self._watch.trace.record("metrics", values)
        return values

    def _evaluate(self, model: Callable[..., Any], batches: Iterator[Any]) -> dict[str, float]:
        values: dict[str, float] = self._task.evaluate(model, batches)
        self._watch.trace.record("metrics", values)
        return values

    def _update(self, step: Step, batch: Any) -> Outcome:
        self._watch.forward()
        trace, minimize = self._watch.trace, step.minimize

        def recorded(loss: Tensor, optimizer: str = "", **keywords: Any) -> None:
            trace.record("loss", {f"loss for {optimizer}" if optimizer else "loss": loss})
            minimize(loss, optimizer, **keywords)

        step.minimize = recorded  # type: ignore[method-assign]
        try:
            return self._recorded(self._task.update(step, batch))
        finally:
            step.minimize = minimize  # type: ignore[method-assign]


def about(state: TrainState, parts: Parts, *, package: str) -> dict[str, Any]:
    """Return the class and module of each part that can be responsible for a difference, and the project's files."""
    named: dict[str, Any] = {"task": parts.task, "data": parts.train.dataset}
    for name, one in state.optimizers.items():
        prefix = f"optimizers.{name}." if name else ""
        named |= {f"{prefix}optimizer": one.optimizer, f"{prefix}scheduler": one.scheduler}
    for name, module in state.model.named_modules():
        named[f"model.{name}".rstrip(".")] = module
    mine = [module for name, module in sys.modules.items() if name.split(".")[0] == package]
    files = {module.__name__: module.__file__ for module in mine if getattr(module, "__file__", None)}
    kinds = {name: class_of(each) for name, each in named.items()}
    classes = {name: [kind.__qualname__, kind.__module__] for name, kind in kinds.items()}
    return {"classes": classes, "files": files}
