"""Write the parts of a checkpoint in several ranks, each its own, on the thread that saves."""

import json
import os
import shutil
from pathlib import Path

from savepoint import checkpoint, parallel
from savepoint.checkpoint import Draft, Written
from savepoint.config import Settings
from savepoint.training.team import agreed


class Parts:
    """The other ranks, as a save of this one meets them. Every rank makes the same saves, in the same order."""

    def __init__(self, root: Path, settings: Settings) -> None:
        """Every rank has to call this. root: where this rank would write checkpoints. That of rank 0 counts for all."""
        where = agreed({"root": str(root.absolute()), "process": os.getpid()})
        self._root, self._process = Path(where["root"]), where["process"]
        self._group = parallel.another_group(seconds=settings.trainer.timeout_seconds)

    def close(self) -> None:
        """Leave the other ranks. One that waits for a part of this rank then fails in place of waiting on."""
        parallel.end_group(self._group)

    def write(self, draft: Draft) -> dict[str, Written]:
        """Write this rank's part, and wait for those of the others. Returns: the entries of all files.

        Raises: OSError, on all ranks, if the disk refuses the part of one. Rank 0 then removes the others.
        """
        directory, failure = checkpoint.hidden(self._root, draft, self._process), None
        try:
            told = {name: vars(entry) for name, entry in checkpoint.write_part(directory, draft).items()}
        except OSError as error:
            told, failure = {}, (error.errno, error.strerror, str(directory))
        note = json.dumps({"written": told, "failure": failure}).encode()
        notes = [json.loads(each) for each in parallel.exchange(note, self._group)]
        for each in notes:
            if each["failure"]:
                if parallel.leads():
                    shutil.rmtree(directory, ignore_errors=True)
                raise OSError(*each["failure"])
        return {name: Written(**entry) for each in notes for name, entry in each["written"].items()}
