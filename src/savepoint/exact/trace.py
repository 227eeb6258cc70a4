"""Train a short run and record digests of everything that it computes, for `verify --exact` to compare.

`python -m savepoint.exact.trace <order.json>` trains the run in a directory, from its beginning or from its newest
checkpoint, for two short epochs, and writes a line for each thing that was computed.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import NamedTuple

from savepoint import checkpoint, runs, training, trust
from savepoint.errors import UserError
from savepoint.exact import traps
from savepoint.exact.watch import Trace, Watch
from savepoint.trackers import NoTracker


class Order(NamedTuple):
    """What one process is asked to train, and the files that it writes.

    directory: the run's. trace, notes: paths of the files. clock_offset: see `traps.Traps`. resumes: the run directory
    whose newest checkpoint it goes on from; None to begin anew. workers: `data.num_workers`.
    """

    directory: str
    repository: str
    trace: str
    notes: str
    clock_offset: int
    resumes: str | None
    workers: int


def main(arguments: list[str]) -> int:
    order = Order(**json.loads(Path(arguments[0]).read_bytes()))
    logging.getLogger("savepoint").setLevel(logging.WARNING)
    trace = Trace(Path(order.trace))
    source = Path(order.repository) / "src"
    package = trust.package(source)
    watch = Watch(trace, package)
    try:
        traps.Traps(source / package, Path(order.notes), clock_offset=order.clock_offset).install()
        _train(order, watch)
        watch.between()
    except UserError as error:
        print(f"error: {trust.printable(str(error))}", file=sys.stderr)
        return 2
    finally:
        trace.close()
    return 0


def _train(order: Order, watch: Watch) -> None:
    repository, directory = Path(order.repository), Path(order.directory)
    chosen = runs.read_config(directory)
    chosen["data"]["num_workers"] = order.workers
    settings = trust.check_config(chosen, source=repository / "src")
    newest = checkpoint.latest(Path(order.resumes) / runs.CHECKPOINTS)[0] if order.resumes else None
    tracker = NoTracker()
    job = runs.Job(runs.read(directory), chosen, settings, tracker, repository, checkpoint=newest, group="exact")
    with training.session(job):
        state, parts = training.prepare(job)
        parts = watch(state, parts)
        with training.supervise(job, state, parts) as (saves, progress, stop):
            training.fit(state, parts, saves, tracker, progress, stop)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # End at once. The watch and what it watches refer to each other, so loading workers may still be held, and an
    # orderly exit would wait for them for ever.
    os._exit(code)
