"""Before a run begins, two samples of each split go through a copy of the model: what does not fit is told then."""

from typing import Any

import pytest
import torch
from tools.faulty import Count, Drawing, Raising, Remembering, Thawing, Unfreezing
from tools.processes import REPOSITORY
from tools.sources import Sized, Stream
from tools.workshop import Workshop
from torch import Tensor, nn

from project.data.digits import Digits
from project.tasks.classification import Classification
from savepoint import Outcome, data, registry, system
from savepoint.config import DataSettings, TrainerSettings
from savepoint.data import digest_of
from savepoint.errors import BuildError, ConfigError
from savepoint.training import rehearsal
from savepoint.training.state import Parts, TrainState

SOURCE = REPOSITORY / "src"


class Counting(Classification):
    """Counts how often it is called: state that nobody registered, and state that somebody did."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.count = 0, registry.register("task", Count())

    def __call__(self, model: Any, batch: Any) -> Outcome:
        self.calls += 1
        self.count.follow(batch[0].flatten(1))
        return super().__call__(model, batch)


def parts_of(dataset: Any, task: Any, **changes: Any) -> Parts:
    settings: Any = type("Settings", (), {"trainer": TrainerSettings(), "data": None})()
    of_data = DataSettings(**{"batch_size": 4, **changes})
    kind = data.Stream if data.is_stream(dataset("train")) else data.Batches
    train, val = (kind(dataset(split), split=split, settings=of_data, seed=0) for split in ("train", "val"))
    return Parts(settings, task, None, train, val, torch.device("cpu"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [Drawing, Remembering, Unfreezing, Thawing, Raising])
@pytest.mark.parametrize("dataset", [Digits, lambda split: Sized(split, buffer=3)], ids=["digits", "stream"])
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_is_left_of_a_rehearsal(model: Any, dataset: Any, workers: int) -> None:
    system.rng.seed(3)
    with registry.collecting() as registered:
        built, task = model(), Counting()
    parts = parts_of(dataset, task, num_workers=workers)
    built.train()

    def everything() -> tuple[Any, ...]:
        kept = {name: value for name, value in vars(built).items() if isinstance(value, int)}
        modes = [module.training for module in built.modules()]
        frozen = [parameter.requires_grad for parameter in built.parameters()]
        counts = {name: each.state_dict() for name, each in registered.items()}
        stream = parts.train.state_dict() if isinstance(parts.train, data.Stream) else None
        return built.state_dict(), kept, modes, frozen, counts, stream, system.rng.capture(), task.calls

    before = digest_of(everything())
    first = digest_of(next(parts_of(dataset, task, num_workers=workers).train.epoch(0)))
    rehearsal.rehearse(TrainState(built, {}), parts, source=SOURCE)
    assert digest_of(everything()) == before
    assert digest_of(next(parts.train.epoch(0))) == first


class Fixed(nn.Module):
    """Gives the logits of so many classes, and raises `error` if there is one."""

    def __init__(self, classes: int = 10, error: Exception | None = None, batch: int = 0) -> None:
        super().__init__()
        self.linear, self.error, self.batch = nn.Linear(64, classes), error, batch

    def forward(self, inputs: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        assert len(inputs) >= self.batch
        return self.linear(inputs.flatten(1))


class NoOutcome(Classification):
    def __call__(self, model: Any, batch: Any) -> Any:
        return super().__call__(model, batch).loss


class LossPerSample(Classification):
    def __call__(self, model: Any, batch: Any) -> Outcome:
        return Outcome(loss=model(batch[0])[:, 0], samples=len(batch[0]), sums={})


BATCH = "(float32 [4, 8, 8], int64 [4])"


@pytest.mark.parametrize(
    ("model", "task", "kind", "told"),
    [
        (Fixed(3), Classification(), ConfigError, "model, data and task (Fixed, Digits, Classification) do not work together on a "
                                                  f"training batch of {BATCH}: IndexError: Target 4 is out of bounds."),
        (nn.Linear(3, 3), Classification(), ConfigError, "model, data and task (Linear, Digits, Classification) do not work together"),
        (Fixed(error=KeyError("x")), Classification(), BuildError, "model, data and task (Fixed, Digits, Classification) do not"),
        (Fixed(error=ConfigError("own words")), Classification(), ConfigError, "own words"),
        (Fixed(), NoOutcome(), ConfigError, "task: NoOutcome returns a Tensor, and has to return an Outcome."),
        (Fixed(), LossPerSample(), ConfigError, "task: the loss of LossPerSample has to be a tensor without dimensions"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_the_batch(model: nn.Module, task: Any, kind: type, told: str) -> None:
    with pytest.raises(kind) as raised:
        rehearsal.rehearse(TrainState(model, {}), parts_of(Digits, task), source=SOURCE)
    assert type(raised.value) is kind and str(raised.value).startswith(told)


def test_what_needs_more_than_two_samples_gets_a_whole_batch() -> None:
    rehearsal.rehearse(TrainState(Fixed(batch=4), {}), parts_of(Digits, Classification()), source=SOURCE)
    with pytest.raises(BuildError):
        rehearsal.rehearse(TrainState(Fixed(batch=5), {}), parts_of(Digits, Classification()), source=SOURCE)


def test_a_model_that_cannot_be_copied_is_not_rehearsed() -> None:
    class Locked(Fixed):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle a lock")

    rehearsal.rehearse(TrainState(Locked(3), {}), parts_of(Digits, Classification()), source=SOURCE)


@pytest.mark.parametrize(
    ("mismatch", "told"),
    [
        (("model.in_features=10",), "model.in_features=10: a sample here has 64 numbers. Add model.in_features=64."),
        (("model.out_features=3",), "model, data and task (Mlp, Digits, Classification) do not work together"),
        (("data=diabetes",), "task=classification: a target is one class (int64), and here it is"),
        (("task=regression", "data=digits"), "task=regression: a target is one number with a fraction"),
        (("model=transformer",), "model=transformer: a sample is a row of tokens"),
        (("task._target_=torch.nn.ReLU", "~task.label_smoothing"), "task: ReLU is no task."),
        (("scheduler._target_=torch.nn.ReLU", "+scheduler._partial_=true"), "scheduler: torch.nn.ReLU is no scheduler"),
    ],
)
def test_a_start_whose_parts_do_not_fit_leaves_nothing(
    workshop: Workshop, mismatch: tuple[str, ...], told: str
) -> None:
    ended = workshop.run("train.py", "tracker=none", "trainer.threads=1", *mismatch)
    assert ended.status == 2 and ended.output.startswith(f"error: {told}"), ended.output
    assert ended.output.count("\n") == 1 and workshop.left() == [], ended.output


def test_an_endless_stream_is_not_read_to_its_end() -> None:
    parts = parts_of(lambda split: Stream(split, samples=None), Classification(), limit_batches=2)
    assert parts.train.glance()[0].shape == (4, 64)
    assert parts.train.state_dict() == {"given": 0, "kept": []} and parts.train.dataset.given == 0
