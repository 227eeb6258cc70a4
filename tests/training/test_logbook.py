"""What is logged between two evaluations: metrics of the samples since the last time, and numbers that tell of trouble."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.fitting import BATCHES, Fitted, Squares, assert_same_run, go
from torch import Tensor

from savepoint import checkpoint
from savepoint.runs import history
from savepoint.system import rng, usage
from savepoint.training.optimization import Scaler
from savepoint.training.task import Outcome


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


def values(fitted: Fitted, key: str) -> dict[int, float]:
    return {line["step"]: float(line[key]) for line in fitted.lines if key in line}


def test_metrics_are_logged_over_the_samples_since_the_last_time(tmp_path: Path) -> None:
    each, some = (go(tmp_path / str(every), log_every_n_steps=every, max_epochs=2) for every in (1, 4))
    single = values(each, "train/recent_absolute")
    sizes = {step: 1 if step % BATCHES == 0 else 2 for step in single}

    def mean(*steps: int) -> float:
        return sum(single[step] * sizes[step] for step in steps) / sum(sizes[step] for step in steps)

    # Never across an evaluation, which is at the end of an epoch here.
    expected = {4: mean(1, 2, 3, 4), 8: mean(7, 8), 12: mean(9, 10, 11, 12)}
    assert values(some, "train/recent_absolute") == pytest.approx(expected, rel=1e-5)
    assert values(each, "train/absolute") == pytest.approx({6: mean(*range(1, 7)), 12: mean(*range(7, 13))}, rel=1e-5)


class Watched(Squares):
    """Remembers the gradient that the model has when its next batch comes, which is none, and that of its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []

    def __call__(self, model: Any, batch: tuple[Tensor, Tensor]) -> Outcome:
        outcome = super().__call__(model, batch)
        if model.training:
            trained = [each for each in model.parameters() if each.requires_grad]
            gradients = torch.autograd.grad(outcome.loss, trained, retain_graph=True)
            self.norms.append(float(torch.cat([each.flatten() for each in gradients]).norm()))
        return outcome


@pytest.mark.parametrize(
    "trainer",
    [{"clip_grad_norm": 0.1}, {"log_grad_norm": True}, {"log_grad_norm": True, "clip_grad_norm": 1e9}],
    ids=str,
)
@pytest.mark.parametrize("fp16", [None, 4.0])
def test_the_gradients_norm_is_logged_as_it_was_before_it_was_clipped(
    tmp_path: Path, trainer: dict[str, Any], fp16: float | None
) -> None:
    task = Watched()
    fitted = go(tmp_path / "run", task=task, log_every_n_steps=3, max_epochs=2, fp16=fp16, **trainer)
    expected = {step: task.norms[step - 1] for step in (3, 6, 9, 12)}
    assert values(fitted, "train/grad_norm") == pytest.approx(expected, rel=1e-4)


def test_the_gradients_norm_is_not_computed_for_nothing(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", log_every_n_steps=1)
    assert values(fitted, "train/grad_norm") == {} and fitted.state.grad_norms == {}


def test_logging_the_norm_changes_no_bit(tmp_path: Path) -> None:
    for name, fp16 in (("plain", None), ("scaled", 2.0**15)):
        logged = go(tmp_path / name, log_grad_norm=True, log_every_n_steps=1, fp16=fp16)
        plain = go(tmp_path / f"{name} without", log_every_n_steps=1, fp16=fp16)
        pairs = zip(logged.state.model.parameters(), plain.state.model.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


class Steep(Squares):
    """Its gradients are too large for a large scale."""

    def __call__(self, model: Any, batch: tuple[Tensor, Tensor]) -> Outcome:
        outcome = super().__call__(model, batch)
        return dataclasses.replace(outcome, loss=1000 * outcome.loss)


def test_scale_and_skipped_updates_are_logged(tmp_path: Path) -> None:
    fitted = go(tmp_path / "run", task=Steep(), fp16=2.0**123, log_every_n_steps=1, log_grad_norm=True)
    scales, skipped = values(fitted, "amp/scale"), values(fitted, "amp/skipped")
    falls = [step for step in range(2, 19) if scales[step] < scales[step - 1]]
    assert skipped[1] in (0, 1) and 0 < skipped[18] < 18
    assert [step for step in range(2, 19) if skipped[step] > skipped[step - 1]] == falls
    norms = values(fitted, "train/grad_norm")
    assert all(math.isfinite(norms[step]) is (step not in falls) for step in range(2, 19))


def test_norms_scales_and_metrics_go_on_where_a_run_was_interrupted(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "task": Steep(),
        "fp16": 2.0**123,
        "log_every_n_steps": 2,
        "clip_grad_norm": 0.5,
        "evaluate_every_n_steps": 4,
    }
    whole = go(tmp_path / "whole", **config)
    assert values(whole, "amp/skipped")[18] > 0
    for at in (1, 3, 4, 6, 7):
        go(tmp_path / f"{at}", stop_at=at, **config)
        assert_same_run(go(tmp_path / f"{at}", **config), whole)


def test_an_old_checkpoint_without_the_sums_logs_its_metrics_from_the_next_time_on(tmp_path: Path) -> None:
    go(tmp_path / "run", stop_at=3, log_every_n_steps=2)
    path = tmp_path / "run" / "checkpoints" / "epoch_0000_step_00000003"
    loaded = checkpoint.load(path)
    old = {
        key: each
        for key, each in loaded.state.items()
        if key not in ("logged_sums", "grad_norms", "evaluated", "stale")
    }
    checkpoint.set_aside(path)
    documents = {"config.yaml": loaded.config, "provenance.json": "{}"}
    checkpoint.save(path.parent, model=loaded.model, state=old, documents=documents, metadata={})
    resumed = go(tmp_path / "run", log_every_n_steps=2)
    assert list(values(resumed, "train/recent_absolute")) == [2, 6, 8, 10, 12, 14, 16, 18]
    assert list(values(resumed, "train/recent_loss")) == list(range(2, 19, 2))


def test_the_number_of_skipped_updates_is_saved() -> None:
    one, other = (Scaler("cpu", init_scale=4.0) for _ in range(2))
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for factor in (1.0, math.inf, 1.0, math.inf):
        one.scale((parameter * factor).sum()).backward()
        one.step(optimizer)
        one.update()
        optimizer.zero_grad()
    assert one.state_dict()["skipped"] == 2
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict()
    old = one.state_dict()
    del old["skipped"]
    other.load_state_dict(old)
    assert other.state_dict()["skipped"] == 0
    assert Scaler("cpu", enabled=False).state_dict() == {}


def test_the_machine_is_measured_from_time_to_time_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not go(tmp_path / "short").run.usage.exists()  # done before the first measurement was due
    monkeypatch.setattr(usage, "_START_SECONDS", 0.0)
    monkeypatch.setattr(usage, "EVERY_SECONDS", 0.0)
    for stop in (8, None):
        fitted = go(tmp_path / "run", stop_at=stop)
        if stop:
            history.append_usage(fitted.run.usage, step=9, values={"system/cpu_percent": 1.0})  # lost with a kill
    steps = [line["step"] for line in history.read_history(fitted.run.usage)]
    # Of each process the first reading is what the second one is compared with.
    assert steps == [*range(2, 9), *range(10, 3 * BATCHES + 1)]
    assert_same_run(fitted, go(tmp_path / "whole"))
