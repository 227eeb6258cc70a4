"""Save checkpoints while a run trains: collect what goes into each, write it beside training, delete old ones."""

import contextlib
import dataclasses
import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import nn

from savepoint import checkpoint, parallel
from savepoint.checkpoint import Snapshot
from savepoint.config import Settings
from savepoint.errors import CheckpointError
from savepoint.runs import FIGURES, History, Run
from savepoint.training import ranks, sharding
from savepoint.training.parts import Parts
from savepoint.training.state import TrainState, capture

log = logging.getLogger("savepoint")


class Saves:
    """The checkpoints and the metric history of one run, as its training loop writes them.

    config, patch, provenance: stored in every checkpoint. patch: None if the working tree is clean.
    resumed_from: the name of the checkpoint that this process started from. It is kept until a newer one is durable.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        *,
        config: str,
        patch: str | None,
        provenance: dict[str, Any],
        resumed_from: str | None,
    ) -> None:
        self.history = History(run.metrics)
        self.figures, self.usage = run.directory / FIGURES, run.usage
        self.newest: Path | None = run.checkpoints / resumed_from if resumed_from else None
        self._run, self._settings = run, settings.checkpoint
        self._config, self._patch, self._provenance = config, patch, provenance
        self._parts = Parts(run.checkpoints, settings) if sharding.wanted(settings) else None
        self._areas = (Snapshot(), Snapshot())  # for the model's tensors, and for all others
        self._background = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._under_way: Future[None] | None = None
        self._saved = time.monotonic()

    def save(self, state: TrainState, *, last: bool = False) -> None:
        """Copy the state and let another thread write it as a checkpoint, then delete what retention does not keep.

        All ranks have to call this. Rank 0 writes; where the model is cut among the ranks, each writes its part.
        Waits for the previous save first, so there are never two at once. If the disk refuses a checkpoint, a warning
        says so and training goes on. The last save is durable on return.
        Raises: OSError if the disk refuses the last save; whatever else stopped the previous save.
        """
        self.wait()
        self._saved = time.monotonic()
        state.history_lines = self.history.lines
        draft = self._draft(state)
        if not parallel.leads() and self._parts is None:
            return
        if last:
            self._publish(draft)
        elif self._settings.async_save:
            copies = [area.copy(plan) for area, plan in zip(self._areas, (draft.model, draft.training))]
            copied = dataclasses.replace(draft, model=copies[0], training=copies[1])
            self._under_way = self._background.submit(self._try, copied, state.step)
        else:
            self._try(draft, state.step)

    def due(self) -> bool:
        """Whether `checkpoint.every_n_minutes` have passed since this process last saved, or started."""
        minutes = self._settings.every_n_minutes
        return minutes is not None and time.monotonic() - self._saved >= 60 * minutes

    def wait(self) -> None:
        """Wait until the save in the background is durable or has failed.

        Raises: the error that stopped it. A disk that refused it was only warned about.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Wait for the save in the background, then close the files."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if self._parts is not None:
                self._parts.close()
            self.history.close()

    def newest_finite(self, model: nn.Module) -> str | None:
        """Name the newest sound checkpoint whose weights are finite; None if there is none.

        Reads the checkpoints, newest first: a checkpoint saved shortly before a NaN was noticed may hold it already.
        Buffers may hold infinities, as attention masks do, but no NaN.
        """
        self.wait()
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name in reversed(checkpoint.names(self._run.checkpoints)):
            with contextlib.suppress(CheckpointError):
                tensors = checkpoint.load(self._run.checkpoints / name).model
                wide = ((key, value.double()) for key, value in tensors.items() if value.is_floating_point())
                if all(value.isfinite().all() if key in weights else not value.isnan().any() for key, value in wide):
                    return name
        return None

    def _draft(self, state: TrainState) -> checkpoint.Draft:
        model, tree = capture(state)
        tree |= ranks.of_all(tree)
        provenance = self._provenance | {"run_id": self._run.id, "tracker_run_id": self._run.tracker_id}
        documents = {checkpoint.CONFIG: self._config, checkpoint.PROVENANCE: json.dumps(provenance, indent=1)}
        if self._patch is not None:
            documents[checkpoint.PATCH] = self._patch
        metadata = {
            "savepoint.run_id": self._run.id,
            "savepoint.git_commit": provenance["git"]["commit"] or "",
            "savepoint.config_sha256": provenance["config_sha256"],
        }
        if tree["model_extra"]:
            metadata["savepoint.elsewhere"] = json.dumps(sorted(tree["model_extra"]))
        return checkpoint.draft(model=model, state=tree, documents=documents, metadata=metadata)

    def _try(self, draft: checkpoint.Draft, step: int) -> None:
        try:
            self._publish(draft)
        except OSError as error:
            kept = f"{self.newest.name} is kept" if self.newest and self.newest.is_dir() else "there is none"
            log.warning("No checkpoint at step %d: %s. Training goes on; %s.", step, error.strerror, kept)

    def _publish(self, draft: checkpoint.Draft) -> None:
        for area in self._areas:
            area.wait()
        written = self._parts.write(draft) if self._parts else None
        if not parallel.leads():
            return
        # The checkpoint stores the number of these lines, so they must reach the disk before its manifest does.
        self.history.sync()
        self.newest = checkpoint.publish(self._run.checkpoints, draft, written)
        with contextlib.suppress(OSError):  # what cannot be deleted now is deleted after the next save
            checkpoint.prune(
                self._run.checkpoints,
                keep_last=self._settings.keep_last,
                keep_best=self._settings.keep_best,
                keep_every_n_epochs=self._settings.keep_every_n_epochs,
                monitor=self._settings.monitor,
                mode=self._settings.mode,
                protect=self.newest.name,
            )
