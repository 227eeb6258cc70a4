"""When the loop says `save`: what goes into the checkpoint besides the state, and what happens to older ones."""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from savepoint import checkpoint
from savepoint.history import History
from savepoint.run import Run
from savepoint.settings import Settings
from savepoint.state import TrainState, capture

log = logging.getLogger("savepoint")


class Saves:
    """Where a run's checkpoints go, and what stands in each besides the state.

    resumed_from: the checkpoint that this process started from, kept until a newer one is durable.
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
        self.newest: Path | None = run.checkpoints / resumed_from if resumed_from else None
        self._run, self._settings = run, settings.checkpoint
        self._config, self._patch, self._provenance = config, patch, provenance

    def save(self, state: TrainState, *, last: bool = False) -> None:
        """Make the state durable, then follow retention.

        A disk that refuses costs this checkpoint, not the run: training goes on to the next one. Raises: OSError if it
        is the last, when there is no next one.
        """
        state.history_lines = self.history.lines
        model, tree = capture(state)
        provenance = self._provenance | {"run_id": self._run.id, "tracker_run_id": self._run.tracker_id}
        documents = {checkpoint.CONFIG: self._config, checkpoint.PROVENANCE: json.dumps(provenance, indent=1)}
        if self._patch is not None:
            documents[checkpoint.PATCH] = self._patch
        metadata = {
            "savepoint.run_id": self._run.id,
            "savepoint.git_commit": provenance["git"]["commit"] or "",
            "savepoint.config_sha256": provenance["config_sha256"],
        }
        try:
            # The checkpoint counts on these lines: they must reach the disk before its manifest does.
            self.history.sync()
            self.newest = checkpoint.save(
                self._run.checkpoints, model=model, state=tree, documents=documents, metadata=metadata
            )
        except OSError as error:
            if last:
                raise
            kept = f"{self.newest.name} is kept" if self.newest else "there is none yet"
            log.warning("No checkpoint at step %d: %s. Training goes on; %s.", state.step, error.strerror, kept)
            return
        with contextlib.suppress(OSError):  # what cannot be deleted now is deleted after the next save
            checkpoint.prune(
                self._run.checkpoints,
                keep_last=self._settings.keep_last,
                keep_best=self._settings.keep_best,
                monitor=self._settings.monitor,
                mode=self._settings.mode,
                protect=self.newest.name,
            )
