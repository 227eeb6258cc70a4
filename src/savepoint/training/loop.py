"""The training loop: the only one, from top to bottom, without callbacks."""

import logging
import math
import time
from collections.abc import Mapping
from itertools import islice

from savepoint import system
from savepoint.errors import NonFiniteError
from savepoint.trackers import Tracker
from savepoint.training.progress import Progress
from savepoint.training.saves import Saves
from savepoint.training.state import Parts, TrainState
from savepoint.training.step import evaluate, summarise, update

log = logging.getLogger("savepoint")


def fit(
    state: TrainState, parts: Parts, saves: Saves, tracker: Tracker, progress: Progress, stop: system.signals.Stop
) -> None:
    """Train from wherever `state` stands to the planned end, or until `stop.signal` is set, and save the result.

    Raises: NonFiniteError if a logged value is NaN or infinite and `trainer.on_nonfinite` is `stop`. That state is not
    saved.
    """
    trainer, cadence = parts.settings.trainer, parts.settings.checkpoint
    history, nonfinite = saves.history, False
    state.model.train()
    # Without this, torch warns about a schedule that steps before the first update of this process. That is right where
    # a run resumes at the end of an epoch, and where the scaler skips the first update.
    for one in state.optimizers.values():
        one.optimizer._opt_called = True  # type: ignore[attr-defined]

    while not finished(state, parts) and stop.signal is None:
        # A model may prepare itself for an epoch, from the epoch's number alone: a run that resumes within the epoch
        # calls this again.
        if begin := getattr(state.model, "begin_epoch", None):
            begin(state.epoch)
        batches = parts.train.epoch(state.epoch, start=state.batch)
        started, samples = time.perf_counter(), state.samples

        # Each turn is one update. A resumed run enters the epoch at `state.batch`.
        while state.batch < len(parts.train):
            update(state, parts, list(islice(batches, trainer.accumulate)))
            progress.advance(epoch=state.epoch, step=state.step)
            if _due(trainer.log_every_n_steps, state.step) and state.batch < len(parts.train):
                recent = _recent(state)
                history.append(step=state.step, epoch=state.epoch, values=recent)
                nonfinite = nonfinite or _notice_nonfinite(recent, state, parts, saves)
                tracker.wake()
            _step_schedules(state, parts, "step")
            if state.step == trainer.max_steps or stop.signal is not None:
                break
            if _due(cadence.every_n_steps, state.step) or saves.due():
                saves.save(state)
        if state.batch < len(parts.train) or stop.signal is not None:
            break

        measured = evaluate(state, parts, stop)
        if measured is None:
            break  # the state is still that of the last update, so a resumed run evaluates again
        speed = {"system/samples_per_second": (state.samples - samples) / (time.perf_counter() - started)}
        state.metrics = {f"train/{name}": value for name, value in summarise(parts, state.sums, state.samples).items()}
        state.metrics |= {f"val/{name}": value for name, value in measured.items()} | _rates(state)
        # In the line of the epoch if both are due: each step has one line, and a tracker one point for each key.
        recent = _recent(state) if _due(trainer.log_every_n_steps, state.step) else {}
        state.epoch, state.batch = state.epoch + 1, 0
        state.sums, state.samples, state.logged = {}, 0, (0.0, 0)
        _note_best(state, parts)
        history.append(step=state.step, epoch=state.epoch, values=state.metrics | recent | speed)
        progress.epoch(epoch=state.epoch, step=state.step, values=state.metrics | speed)
        nonfinite = nonfinite or _notice_nonfinite(state.metrics, state, parts, saves)
        _step_schedules(state, parts, "epoch")
        if _due(cadence.every_n_epochs, state.epoch) and not finished(state, parts):
            saves.save(state)
        tracker.wake()

    # Whatever the cadence: nothing that has been trained is thrown away.
    saves.save(state, last=True)


def finished(state: TrainState, parts: Parts) -> bool:
    """Whether the planned end is reached. An epoch with all its batches done is not finished before its evaluation."""
    trainer = parts.settings.trainer
    if trainer.max_epochs is not None and state.epoch >= trainer.max_epochs:
        return True
    if trainer.patience is not None and stale(state) >= trainer.patience:
        return True
    return trainer.max_steps is not None and state.step >= trainer.max_steps and state.batch != len(parts.train)


def stale(state: TrainState) -> int:
    """Count the epochs since the best value of checkpoint.monitor, or since the start if no value was a number."""
    return state.epoch - (state.best["epoch"] if state.best else 0)


def _due(every: int | None, count: int) -> bool:
    return every is not None and count % every == 0


def _step_schedules(state: TrainState, parts: Parts, interval: str) -> None:
    for name, one in state.optimizers.items():
        schedule = parts.settings.schedule(name)
        if schedule.interval == interval:
            one.scheduler.step(*([] if schedule.monitor is None else [state.metrics[schedule.monitor]]))


def _rates(state: TrainState) -> dict[str, float]:
    """Name the learning rates of the last update: `lr`, then `lr/1`, … for the parameter groups of one optimizer.

    Those of an optimizer with a name begin with `lr/<name>`.
    """
    return {
        f"lr/{name}".rstrip("/") + (f"/{index}" if index else ""): rate
        for name, one in state.optimizers.items()
        for index, rate in enumerate(one.learning_rates)
    }


def _recent(state: TrainState) -> dict[str, float]:
    """Compute the mean loss since it was last logged in this epoch. Waits for the device: do not call it every step."""
    loss, samples = state.logged
    state.logged = float(state.sums["loss"]), state.samples
    return {"train/recent_loss": (state.logged[0] - loss) / (state.samples - samples)} | _rates(state)


def _notice_nonfinite(values: Mapping[str, float], state: TrainState, parts: Parts, saves: Saves) -> bool:
    """Whether a logged value is NaN or infinite: warn about the first one, or end the run.

    Raises: NonFiniteError if `trainer.on_nonfinite` is `stop`.
    """
    found = next((f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)), None)
    if found is None:
        return False
    found += f" at step {state.step}"
    advice = "debug=anomaly finds the operation that causes it"
    if parts.settings.trainer.on_nonfinite != "stop":
        log.warning("%s. Training goes on. %s; trainer.on_nonfinite=stop ends a run here.", found, advice)
        return True
    name = saves.newest_finite(state.model)
    kept = f"The newest checkpoint with finite weights is {name}" if name else "No checkpoint has finite weights"
    weights = f", and init_from=…@{name} starts a run from those weights" if name else ""
    raise NonFiniteError(f"{found}, and trainer.on_nonfinite is stop. {kept}. {advice}{weights}.")


def _note_best(state: TrainState, parts: Parts) -> None:
    cadence = parts.settings.checkpoint
    if cadence.monitor is None:
        return
    value = state.metrics[cadence.monitor]
    sign = 1 if cadence.mode == "min" else -1
    # The order of the comparison matters: NaN is never better than a number, and any number is better than NaN.
    if value == value and not (state.best and sign * state.best["value"] <= sign * value):
        state.best = {"metric": cadence.monitor, "value": value, "epoch": state.epoch, "step": state.step}
