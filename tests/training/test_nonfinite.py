"""A logged value that is NaN or infinite: said once, or the end of the run, with the last sound weights named."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import BATCHES, Fitted, Squares, go
from test_saves import Bench
from tools.processes import Zygote
from torch import Tensor, nn

from savepoint import checkpoint, runs
from savepoint.errors import NonFiniteError
from savepoint.system import rng
from savepoint.training.task import Outcome

ADVICE = "debug=anomaly finds the operation that causes it"
EACH_STEP = {"every_n_steps": 1, "every_n_epochs": None}


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


class Poisoned(Squares):
    """Gives `value` for a loss in update `at` and those after it, or spoils one metric.

    spoils: "loss", "validation" (its loss alone), "metric", or "gradient": the loss of update `at` is finite still.
    """

    def __init__(self, at: int = 1, *, spoils: str = "loss", value: float = math.nan) -> None:
        super().__init__()
        self.at, self.spoils, self.value, self.calls = at, spoils, value, 0

    def __call__(self, model: Any, batch: tuple[Tensor, Tensor]) -> Outcome:
        outcome = super().__call__(model, batch)
        self.calls += model.training
        factor = {"loss": self.calls >= self.at, "validation": not model.training}.get(self.spoils, False)
        loss = outcome.loss * self.value if factor else outcome.loss
        if self.spoils == "gradient" and model.training and self.calls == self.at:
            loss = loss + (0 * loss).sqrt()  # zero, with a derivative that is not a number
        return Outcome(loss, outcome.samples, outcome.sums)

    def compute(self, sums: Mapping[str, Tensor], samples: int) -> dict[str, float]:
        return {"absolute": self.value} if self.spoils == "metric" else super().compute(sums, samples)


@pytest.mark.parametrize(
    "task, every, found",
    [
        (lambda: Poisoned(1), 2, "train/recent_loss is nan at step 2"),
        (lambda: Poisoned(3), 2, "train/recent_loss is nan at step 4"),
        (lambda: Poisoned(4, value=math.inf), 2, "train/recent_loss is inf at step 4"),
        (lambda: Poisoned(3), None, "train/loss is nan at step 6"),
        (lambda: Poisoned(6), 2, "train/loss is nan at step 6"),
        (lambda: Poisoned(BATCHES + 1), 4, "train/recent_loss is nan at step 8"),
        (lambda: Poisoned(spoils="validation"), 2, "val/loss is nan at step 6"),
        (lambda: Poisoned(spoils="metric", value=-math.inf), 2, "train/absolute is -inf at step 6"),
    ],
)
def test_it_is_said_once_at_the_next_log_point_with_its_key_and_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: Any, every: int | None, found: str
) -> None:
    fitted = go(tmp_path / "run", task=task(), log_every_n_steps=every)
    assert [record.getMessage() for record in caplog.records if "on_nonfinite" in record.getMessage()] == [
        f"{found}. Training goes on. {ADVICE}; trainer.on_nonfinite=stop ends a run here."
    ]
    assert fitted.state.epoch == 3, "to the planned end"


def test_nothing_is_said_of_a_run_whose_values_are_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go(tmp_path / "run", on_nonfinite="stop")
    assert caplog.records == []


def stopped(directory: Path, task: Squares, **options: Any) -> str:
    with pytest.raises(NonFiniteError) as error:
        go(directory, task=task, on_nonfinite="stop", **options)
    return str(error.value)


STOP = "is nan at step 4, and trainer.on_nonfinite is stop."
KEPT = (
    "The newest checkpoint with finite weights is {0}. "
    + ADVICE
    + ", and init_from=…@{0} starts a run from those weights."
)


@pytest.mark.parametrize(
    "task, newest, finite",
    [
        (lambda: Poisoned(3), 3, 2),
        # The loss of update 3 is finite, and so is the value that was logged at step 2: only the weights tell.
        (lambda: Poisoned(3, spoils="gradient"), 3, 2),
        (lambda: Poisoned(2), 3, 1),
        (lambda: Poisoned(4), 3, 3),
    ],
)  # fmt: skip
def test_stop_ends_the_run_there_and_names_the_newest_checkpoint_with_finite_weights(
    tmp_path: Path, task: Any, newest: int, finite: int
) -> None:
    """Checkpoints between the last finite value and the first other one may hold NaN: they are looked at."""
    message = stopped(tmp_path / "run", task(), log_every_n_steps=4, keep=EACH_STEP)
    name = f"epoch_0000_step_{finite:08}"
    assert message == f"train/recent_loss {STOP} {KEPT.format(name)}"
    names = checkpoint.names(tmp_path / "run" / "checkpoints")
    assert names[-1] == f"epoch_0000_step_{newest:08}", "the state that was refused is not saved"


def test_stop_says_that_no_checkpoint_is_finite(tmp_path: Path) -> None:
    told = f"train/recent_loss {STOP} No checkpoint has finite weights. {ADVICE}."
    assert stopped(tmp_path / "none", Poisoned(3), log_every_n_steps=4) == told
    assert stopped(tmp_path / "poisoned", Poisoned(1), log_every_n_steps=4, keep=EACH_STEP) == told


def test_stop_counts_validation_whose_weights_may_be_finite(tmp_path: Path) -> None:
    message = stopped(tmp_path / "run", Poisoned(spoils="validation"), keep=EACH_STEP)
    assert (
        message.startswith("val/loss is nan at step 6, ") and "finite weights is epoch_0000_step_00000006." in message
    )


@pytest.mark.parametrize("at", range(1, 4))
def test_an_interrupted_run_stops_where_the_uninterrupted_one_does(tmp_path: Path, at: int) -> None:
    whole = stopped(tmp_path / "whole", Poisoned(2), log_every_n_steps=4, keep=EACH_STEP)
    go(tmp_path / "run", task=Poisoned(2), stop_at=at, on_nonfinite="stop", log_every_n_steps=4, keep=EACH_STEP)
    assert stopped(tmp_path / "run", Poisoned(2 - at), log_every_n_steps=4, keep=EACH_STEP) == whole


def test_a_run_that_warns_is_bit_for_bit_the_one_before(tmp_path: Path) -> None:
    """Looking at the logged values enters no state: a checkpoint is the same with either setting."""
    runs_: list[Fitted] = [go(tmp_path / each, on_nonfinite=each, max_epochs=1) for each in ("warn", "stop")]
    first, second = (checkpoint.load(each.run.checkpoints / "epoch_0001_step_00000006") for each in runs_)
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)


@pytest.mark.parametrize(
    "buffer, weight, finite",
    [(-math.inf, 1.0, True), (math.nan, 1.0, False), (0.0, math.inf, False), (0.0, math.nan, False), (0.0, 1.0, True)],
)
def test_weights_are_finite_without_nan_anywhere_and_without_an_infinite_parameter(
    tmp_path: Path, buffer: float, weight: float, finite: bool
) -> None:
    """An attention mask is a buffer that holds infinities by design."""
    bench = Bench(tmp_path / "run")
    model: nn.Module = bench.state.model
    model.register_buffer("mask", torch.tensor([0.0, buffer]))
    model.register_buffer("count", torch.tensor(3))
    with torch.no_grad():
        next(model.parameters())[0, 0] = weight
    bench.saves.save(bench.state)
    assert bench.saves.newest_finite(model) == ("epoch_0000_step_00000000" if finite else None)
    bench.saves.close()


def test_a_damaged_checkpoint_is_not_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run")
    for _ in range(2):
        bench.saves.save(bench.state)
        bench.update()
    bench.saves.wait()
    (bench.run.checkpoints / "epoch_0000_step_00000001" / checkpoint.MODEL).write_bytes(b"")
    assert bench.saves.newest_finite(bench.state.model) == "epoch_0000_step_00000000"
    bench.saves.close()


def test_train_py_ends_with_one_line_and_the_run_is_kept_as_failed(zygote: Zygote, tmp_path: Path) -> None:
    config = ("tracker=none", "optimizer=sgd", "optimizer.lr=1e30", "data.limit_batches=4", "trainer.max_epochs=2")
    directory = tmp_path / "run"
    ended = zygote.run("train.py", *config, "trainer.on_nonfinite=stop", f"hydra.run.dir={directory}")
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    last = ended.output.splitlines()[-1]
    assert last.startswith("error: train/loss is ") and last.endswith(f"No checkpoint has finite weights. {ADVICE}.")
    assert runs.read(directory).record["status"] == "failed"
    again = zygote.run("resume.py", f"run={directory}", "trainer.on_nonfinite=warn")
    assert again.status == 0 and again.output.count("trainer.on_nonfinite=stop ends a run here.") == 1, again.output
    assert runs.read(directory).record["status"] == "finished"
