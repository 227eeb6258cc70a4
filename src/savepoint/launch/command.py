"""Read train.py's command line: train one run, or with `-m` a sweep of runs."""

import re
import sys
from pathlib import Path

from savepoint import parallel, system
from savepoint.config import help_text, quote_paths, quote_raw
from savepoint.launch import processes, ranks
from savepoint.launch.application import Application, Train, typed_overrides
from savepoint.launch.finish import resume_sweep
from savepoint.launch.script import run_script
from savepoint.launch.start import following


def run_train(train: Train, repository: Path) -> int:
    """Do what train.py's command line asks for: print the help, train one run, or train a sweep.

    train: trains one run and returns the best value of checkpoint.monitor, for a sweeper to compare.
    repository: the directory that holds train.py and conf/.
    Returns: the exit code.
    """
    conf = repository / "conf"

    def work() -> int | None:
        if not parallel.leads():
            ranks.follow(lambda order: train(following(order, repository)))
            return 0
        with ranks.leading():
            return lead()

    def lead() -> int | None:
        sys.argv[1:] = quote_raw(sys.argv[1:], ("init_from",))
        sys.argv[1:] = quote_paths(sys.argv[1:], ("hydra.run.dir", "hydra.sweep.dir"))
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text(typed_overrides(), conf))
        elif parallel.count() == 1 and (count := processes.wanted(typed_overrides(), conf)) > 1:
            if any(re.fullmatch("resume=(auto|force)", each) for each in sys.argv[1:]):
                system.signals.requeue()
            return processes.start(count, [str(repository / "train.py"), *sys.argv[1:]])
        elif (sweep := ranks.restarted_sweep()) is not None:
            resume_sweep(train, repository, sweep, [])
        else:
            Application(train, repository).run()
        return None

    return run_script(work, overrides=typed_overrides, conf_dir=conf)
