"""Log what a run measures: lines of metrics.jsonl and system.jsonl, rows on the terminal, a warning about NaN."""

import logging
import math
import time
from collections.abc import Mapping

import torch

from savepoint import parallel, runs, system
from savepoint.errors import NonFiniteError
from savepoint.trackers import Tracker
from savepoint.training import evaluation
from savepoint.training.progress import SPEED, Progress
from savepoint.training.saves import Saves
from savepoint.training.state import Parts, TrainState
from savepoint.training.team import total

log = logging.getLogger("savepoint")


class Logbook:
    """Logs what a run measures while it trains. A step gets one line at most: a tracker keeps one point for each."""

    def __init__(self, state: TrainState, parts: Parts, saves: Saves, tracker: Tracker, progress: Progress) -> None:
        self._state, self._parts = state, parts
        self._saves, self._tracker, self._progress = saves, tracker, progress
        self._nonfinite = False  # whether a non-finite value was noticed
        self._meter = system.usage.Meter(saves.usage.parent, parts.device)
        self.start_clock()

    def start_clock(self) -> None:
        """Measure the speed from here on."""
        self._started, self._samples = time.perf_counter(), self._state.samples

    def update(self) -> None:
        """Show an update that was made, and log it every `trainer.log_every_n_steps`.

        If an evaluation is due now, its line will have the values of this update.
        """
        state = self._state
        self._progress.advance(epoch=state.epoch, step=state.step)
        if self._due() and not evaluation.due(state, self._parts):
            recent = self._recent()
            self._saves.history.append(step=state.step, epoch=state.epoch, values=recent | self._speed())
            # The loss alone: the norm of an update that float16 skips is infinite, a metric of few samples may be NaN.
            self._notice_nonfinite({"train/recent_loss": recent["train/recent_loss"]})
            self._tracker.wake()
        if self._meter.due() and (usage := self._meter.read()):
            runs.append_usage(self._saves.usage, step=state.step, values=usage)

    def evaluation(self, measured: Mapping[str, float]) -> None:
        """Log an evaluation: what it measured, and the training metrics over the samples since the last evaluation."""
        state, parts = self._state, self._parts
        metrics, recent = {f"val/{name}": value for name, value in measured.items()}, {}
        speed = {}
        sums, samples = total(state.sums, state.samples)
        if samples:
            speed = self._speed()
            trained = evaluation.summarise(parts, sums, samples)
            metrics = {f"train/{name}": value for name, value in trained.items()} | metrics | self._rates()
            recent = self._recent() if self._due() else {}
        state.metrics, state.sums, state.samples = metrics, {}, 0
        state.logged, state.logged_sums = (0.0, 0), {}
        # An epoch with all its batches done is completed by its evaluation.
        epoch = state.epoch + (state.batch == len(parts.train))
        self._saves.history.append(step=state.step, epoch=epoch, values=metrics | recent | speed)
        self._progress.row(epoch=epoch, step=state.step, values=metrics | speed)
        self._notice_nonfinite(metrics)
        self.start_clock()

    def _due(self) -> bool:
        every = self._parts.settings.trainer.log_every_n_steps
        return every is not None and self._state.step % every == 0

    def _rates(self) -> dict[str, float]:
        """Return the learning rates of the last update: `lr`, then `lr/1`, … for the parameter groups of one optimizer.

        Rates of an optimizer with a name begin with `lr/<name>`.
        """
        return {
            f"lr/{name}".rstrip("/") + (f"/{index}" if index else ""): rate
            for name, one in self._state.optimizers.items()
            for index, rate in enumerate(one.learning_rates)
        }

    def _recent(self) -> dict[str, float]:
        """Compute loss and metrics over the samples since they were last logged, and the numbers that tell of trouble.

        This waits for the device, so it must not be called at every step.
        """
        state, (loss, samples), before = self._state, self._state.logged, self._state.logged_sums
        sums_so_far, samples_so_far = total(state.sums, state.samples)
        state.logged = float(sums_so_far["loss"]), samples_so_far
        state.logged_sums = {name: value.clone() for name, value in sums_so_far.items() if name != "loss"}
        recent = {"train/recent_loss": (state.logged[0] - loss) / (samples_so_far - samples)}
        if samples == 0 or before.keys() == state.logged_sums.keys():  # the first checkpoints lack the sums before
            now = state.logged_sums
            sums = {name: (value - before[name] if samples else value).cpu() for name, value in now.items()}
            values = self._parts.task.compute(sums, samples_so_far - samples)
            recent |= {f"train/recent_{name}": float(value) for name, value in values.items()}
        return recent | self._rates() | self._trouble()

    def _trouble(self) -> dict[str, float]:
        """Read the norms of gradients, the scales of float16, the number of skipped updates, and the GPU's memory."""
        found = {f"train/grad_norm/{name}".rstrip("/"): float(norm) for name, norm in self._state.grad_norms.items()}
        scalers = {name: one.scaler for name, one in self._state.optimizers.items() if one.scaler.is_enabled()}
        if len({id(scaler) for scaler in scalers.values()}) == 1:
            scalers = {"": next(iter(scalers.values()))}
        for name, scaler in scalers.items():
            found[f"amp/scale/{name}".rstrip("/")] = scaler.get_scale()
            found[f"amp/skipped/{name}".rstrip("/")] = float(scaler.skipped)
        if self._parts.device.type == "cuda":
            found["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self._parts.device) / 1e9
        return found

    def _speed(self) -> dict[str, float]:
        """Compute the samples per second since the clock was started. Ranks have equal shares, but for one sample."""
        samples = (self._state.samples - self._samples) * parallel.count()
        return {SPEED: samples / (time.perf_counter() - self._started)}

    def _notice_nonfinite(self, values: Mapping[str, float]) -> None:
        """Warn about the first logged value that is NaN or infinite, or end the run.

        Raises: NonFiniteError if `trainer.on_nonfinite` is `stop`.
        """
        found = next((f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)), None)
        if found is None or self._nonfinite:
            return
        self._nonfinite = True
        found += f" at step {self._state.step}"
        advice = "debug=anomaly finds the operation that causes it"
        if self._parts.settings.trainer.on_nonfinite != "stop":
            log.warning("%s. Training goes on. %s; trainer.on_nonfinite=stop ends a run here.", found, advice)
            return
        name = self._saves.newest_finite(self._state.model)
        kept = f"The newest checkpoint with finite weights is {name}" if name else "No checkpoint has finite weights"
        weights = f", and init_from=…@{name} starts a run from those weights" if name else ""
        raise NonFiniteError(f"{found}, and trainer.on_nonfinite is stop. {kept}. {advice}{weights}.")
