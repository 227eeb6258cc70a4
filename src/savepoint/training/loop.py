"""The training loop: the only one, from top to bottom, no callbacks."""

import time
from itertools import islice

from savepoint import system
from savepoint.trackers import Tracker
from savepoint.training.progress import Progress
from savepoint.training.saves import Saves
from savepoint.training.state import Parts, TrainState
from savepoint.training.step import evaluate, summarise, update


def fit(
    state: TrainState, parts: Parts, saves: Saves, tracker: Tracker, progress: Progress, stop: system.signals.Stop
) -> None:
    """Train from wherever `state` is to the planned end, or until `stop`. What is reached is saved."""
    trainer, cadence, schedule = parts.settings.trainer, parts.settings.checkpoint, parts.settings.scheduler
    history = saves.history
    state.model.train()
    # Or torch warns of a schedule that steps before the first update of this process: where a run resumes at the end of
    # an epoch, or the scaler skips that update.
    state.optimizer._opt_called = True  # type: ignore[attr-defined]

    while not finished(state, parts) and stop.signal is None:
        # A model's own say, from the epoch's number alone: it is called again where a run resumes within an epoch.
        if begin := getattr(state.model, "begin_epoch", None):
            begin(state.epoch)
        batches = parts.train.epoch(state.epoch, start=state.batch)
        started, samples = time.perf_counter(), state.samples

        # One turn is one update. `state.batch` is where it stands, so a resumed epoch begins in its middle.
        while state.batch < len(parts.train):
            update(state, parts, list(islice(batches, trainer.accumulate)))
            progress.advance(epoch=state.epoch, step=state.step)
            if _due(trainer.log_every_n_steps, state.step) and state.batch < len(parts.train):
                history.append(step=state.step, epoch=state.epoch, values=_recent(state))
                tracker.wake()
            if schedule.interval == "step":
                state.scheduler.step()
            if state.step == trainer.max_steps or stop.signal is not None:
                break
            if _due(cadence.every_n_steps, state.step) or saves.due():
                saves.save(state)
        if state.batch < len(parts.train) or stop.signal is not None:
            break

        measured = evaluate(state, parts, stop)
        if measured is None:
            break  # the state is still that of the last update: the resumed run evaluates again
        rate = (state.samples - samples) / (time.perf_counter() - started)
        state.metrics = {f"train/{name}": value for name, value in summarise(parts, state.sums, state.samples).items()}
        state.metrics |= {f"val/{name}": value for name, value in measured.items()} | _rates(state)
        # In the epoch's own line where both are due: a step has one line, and a tracker one point for each key.
        recent = _recent(state) if _due(trainer.log_every_n_steps, state.step) else {}
        state.epoch, state.batch = state.epoch + 1, 0
        state.sums, state.samples, state.logged = {}, 0, (0.0, 0)
        _note_best(state, parts)
        values = state.metrics | recent | {"system/samples_per_second": rate}
        history.append(step=state.step, epoch=state.epoch, values=values)
        progress.epoch(epoch=state.epoch, step=state.step, values=values)
        if schedule.interval == "epoch":
            if schedule.monitor is None:
                state.scheduler.step()
            else:
                state.scheduler.step(state.metrics[schedule.monitor])
        if _due(cadence.every_n_epochs, state.epoch) and not finished(state, parts):
            saves.save(state)
        tracker.wake()

    # Also where the cadence asks for none here: what has been trained is never thrown away.
    saves.save(state, last=True)


def finished(state: TrainState, parts: Parts) -> bool:
    """Whether the planned end is reached. An epoch whose batches are all done still wants its evaluation."""
    trainer = parts.settings.trainer
    if trainer.max_epochs is not None and state.epoch >= trainer.max_epochs:
        return True
    if trainer.patience is not None and stale(state) >= trainer.patience:
        return True
    return trainer.max_steps is not None and state.step >= trainer.max_steps and state.batch != len(parts.train)


def stale(state: TrainState) -> int:
    """Epochs since the best value of checkpoint.monitor; since the beginning, where none was a number."""
    return state.epoch - (state.best["epoch"] if state.best else 0)


def _due(every: int | None, count: int) -> bool:
    return every is not None and count % every == 0


def _rates(state: TrainState) -> dict[str, float]:
    """The learning rate of the last update: `lr`, and `lr/1`, `lr/2`, … of further parameter groups."""
    return {f"lr/{index}" if index else "lr": rate for index, rate in enumerate(state.learning_rates)}


def _recent(state: TrainState) -> dict[str, float]:
    """The mean loss since it was last logged in this epoch. Waits for the device, so it is not on every step."""
    loss, samples = state.logged
    state.logged = float(state.sums["loss"]), state.samples
    return {"train/recent_loss": (state.logged[0] - loss) / (state.samples - samples)} | _rates(state)


def _note_best(state: TrainState, parts: Parts) -> None:
    cadence = parts.settings.checkpoint
    if cadence.monitor is None:
        return
    value = state.metrics[cadence.monitor]
    sign = 1 if cadence.mode == "min" else -1
    # Written so that NaN is never better, and always beaten.
    if value == value and not (state.best and sign * state.best["value"] <= sign * value):
        state.best = {"metric": cadence.monitor, "value": value, "epoch": state.epoch, "step": state.step}
