"""The training loop: the only one, from top to bottom, without callbacks."""

from itertools import islice

from savepoint import system
from savepoint.errors import ConfigError
from savepoint.trackers import Tracker
from savepoint.training import evaluation
from savepoint.training.figures import draw_if_due
from savepoint.training.logbook import Logbook
from savepoint.training.progress import Progress
from savepoint.training.saves import Saves
from savepoint.training.state import Parts, TrainState
from savepoint.training.step import update


def fit(
    state: TrainState, parts: Parts, saves: Saves, tracker: Tracker, progress: Progress, stop: system.signals.Stop
) -> None:
    """Train from wherever `state` stands to the planned end, or until `stop.signal` is set, and save the result.

    state: changed in place. saves: where checkpoints and the history go. tracker: woken when there is something new.
    Raises: NonFiniteError if a logged value is NaN or infinite and `trainer.on_nonfinite` is `stop`. That state is not
    saved.
    """
    trainer, cadence = parts.settings.trainer, parts.settings.checkpoint
    logbook = Logbook(state, parts, saves, tracker, progress)
    by_steps = trainer.evaluate_every_n_steps is not None
    state.model.train()
    # Without this, torch warns about a schedule that steps before the first update of this process. That step is right
    # where a run resumes at the end of an epoch, and where the scaler skips the first update.
    for one in state.optimizers.values():
        one.optimizer._opt_called = True  # type: ignore[attr-defined]

    while not finished(state, parts) and stop.signal is None:
        # A model may prepare itself for an epoch. It may use nothing but the epoch's number, because a run that resumes
        # within the epoch calls this again.
        if begin := getattr(state.model, "begin_epoch", None):
            begin(state.epoch)
        if parts.team is not None:
            parts.team.begin_epoch()
        batches = parts.train.epoch(state.epoch, start=state.batch, order=state.order)
        # An evaluation is due here before the first update, and after an interruption during an evaluation.
        interrupted = by_steps and state.step > 0 and evaluation.due(state, parts)
        if not _evaluate_if_due(state, parts, logbook, stop):
            break
        if interrupted and _due(cadence.every_n_steps, state.step):
            saves.save(state)  # in place of the checkpoint that lacks this evaluation
        logbook.start_clock()

        # Each turn is one update. A resumed run enters the epoch at `state.batch`.
        while state.batch < len(parts.train) and not finished(state, parts):
            update(state, parts, list(islice(batches, trainer.accumulate)))
            logbook.update()
            _step_schedules(state, parts, "step")
            if by_steps and stop.signal is None and not _evaluate_if_due(state, parts, logbook, stop):
                break  # the state is still that of the last update, so a resumed run evaluates again
            if state.step == trainer.max_steps or stop.signal is not None:
                break
            if _due(cadence.every_n_steps, state.step) or _due_by_clock(saves, parts):
                saves.save(state)
        if state.batch < len(parts.train) or stop.signal is not None:
            break

        if not _evaluate_if_due(state, parts, logbook, stop) or not draw_if_due(state, parts, saves.figures, stop):
            break
        state.epoch, state.batch = state.epoch + 1, 0
        _step_schedules(state, parts, "epoch")
        if _due(cadence.every_n_epochs, state.epoch) and not finished(state, parts):
            saves.save(state)
        tracker.wake()

    # Save whatever the cadence is, so that nothing that has been trained is lost.
    saves.save(state, last=True)


def finished(state: TrainState, parts: Parts) -> bool:
    """Whether the planned end is reached, and everything that is due there is done."""
    trainer = parts.settings.trainer
    if trainer.max_epochs is not None and state.epoch >= trainer.max_epochs:
        return True
    # An epoch with all its batches done is ended first: evaluated, drawn and counted.
    if state.batch == len(parts.train) or evaluation.due(state, parts):
        return False
    if trainer.patience is not None and state.stale >= trainer.patience:
        return True
    return trainer.max_steps is not None and state.step >= trainer.max_steps


def _due(every: int | None, count: int) -> bool:
    return every is not None and count % every == 0


def _due_by_clock(saves: Saves, parts: Parts) -> bool:
    return saves.due() if parts.team is None else parts.team.due


def _evaluate_if_due(state: TrainState, parts: Parts, logbook: Logbook, stop: system.signals.Stop) -> bool:
    """Make an evaluation if one is due: measure, log, note the best value, and step the schedules that follow a metric.

    Returns: False if `stop.signal` was set meanwhile. The state is then as before, and the evaluation still due.
    """
    if not evaluation.due(state, parts):
        return True
    measured = evaluation.evaluate(state, parts, stop)
    if measured is None:
        return False
    logbook.evaluation(measured)
    _note_best(state, parts)
    _step_plateaus(state, parts)
    state.evaluated = state.step
    return True


def _step_plateaus(state: TrainState, parts: Parts) -> None:
    """Step the schedules that follow a metric."""
    every = parts.settings.trainer.evaluate_every_n_steps
    if every is not None and state.step % every != 0:
        # This evaluation was made only because training ends here. A run that was planned longer would not make it, and
        # an extended run must have the same rates as that one.
        return
    for name, one in state.optimizers.items():
        monitor = parts.settings.schedule(name).monitor
        if monitor is not None and (value := _followed(monitor, f"scheduler.{name}".rstrip("."), state)) is not None:
            one.scheduler.step(value)


def _step_schedules(state: TrainState, parts: Parts, interval: str) -> None:
    for name, one in state.optimizers.items():
        schedule = parts.settings.schedule(name)
        if schedule.interval == interval and schedule.monitor is None:
            one.scheduler.step()


def _note_best(state: TrainState, parts: Parts) -> None:
    cadence = parts.settings.checkpoint
    if cadence.monitor is None or (value := _followed(cadence.monitor, "checkpoint", state)) is None:
        return
    if state.best and state.best["metric"] != cadence.monitor:  # a resume may follow another metric
        state.best, state.stale = None, 0
    sign = 1 if cadence.mode == "min" else -1
    state.stale += 1
    # The order of the comparison matters: NaN is never better than a number, and any number is better than NaN.
    if value == value and not (state.best and sign * state.best["value"] <= sign * value):
        epoch = state.epoch + (state.batch == len(parts.train))
        state.best = {"metric": cadence.monitor, "value": value, "epoch": epoch, "step": state.step}
        state.stale = 0


def _followed(monitor: str, key: str, state: TrainState) -> float | None:
    """Return the value of a monitored metric, None where training metrics do not exist yet: before the first update.

    Raises: ConfigError if the evaluation did not measure it.
    """
    if monitor not in state.metrics and state.step > 0:
        raise ConfigError(
            f"{key}.monitor={monitor}: the evaluation at step {state.step} did not measure that. It measured "
            f"{', '.join(state.metrics)}."
        )
    return state.metrics.get(monitor)
