"""Let Optuna choose the values of each job of a sweep from the results of earlier jobs: `hydra/sweeper=optuna`.

Hydra's own Optuna plugin cannot resume an interrupted sweep. It also needs an Optuna of 2022, whose storage does not
work with the SQLAlchemy that MLflow needs.
"""

import importlib.util
import math
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from savepoint import system
from savepoint.errors import UserError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY = "study.db"


def register() -> None:
    """Register the sweeper with Hydra, which accepts plugins only from the package `hydra_plugins`."""
    if importlib.util.find_spec("hydra_plugins") is None:  # no other plugin is installed
        sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
    sys.modules[OptunaSweeper.__module__] = sys.modules[__name__]
    Plugins.instance().register(OptunaSweeper)


class OptunaSweeper(Sweeper):
    """A sweeper for Hydra that searches with Optuna. The study lies in the sweep's directory, where a resume finds it.

    The values of a job depend only on the seed, the job's number, and the results of the jobs before its batch. So a
    sweep that is interrupted and resumed trains the same jobs as one that is not.
    Source of the method: Bergstra et al. 2011, tree-structured Parzen estimators, as in `optuna.samplers.TPESampler`.
    """

    __module__ = "hydra_plugins.savepoint"

    def __init__(self, **settings: Any) -> None:
        """Keep the settings. `sweep` checks them, because Hydra would wrap an error raised here in one of its own.

        settings: n_trials, the number of jobs; n_jobs, how many of them are chosen and launched together; seed, the
        seed of the choices; params, the values to search for each key. An override of the same key replaces its values.
        """
        self._settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context  # for `validate_batch_is_legal`
        self._config, self._parser = config, OverridesParser.create(hydra_context.config_loader)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Train the jobs. arguments: the overrides of the command line, without those for Hydra itself.

        Raises: UserError for wrong settings; the error of the first job that failed, once all others are trained.
        """
        self._check()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        typed = self._parser.parse_overrides(arguments)
        keys = {each.get_key_element() for each in typed}
        preset = [f"{key}={value}" for key, value in (self._settings["params"] or {}).items() if key not in keys]
        wanted = [*self._parser.parse_overrides(preset), *typed]
        space = {each.get_key_element(): _distribution(each) for each in wanted if each.is_sweep_override()}
        fixed = [str(each.input_line) for each in wanted if not each.is_sweep_override()]
        if not space:
            raise UserError("Optuna has nothing to search. Give a key several values: optimizer.lr=interval(0.001,0.1)")
        for key in {"checkpoint.mode", "checkpoint.monitor"} & space.keys():
            raise UserError(f"{key} says which job is best. Give it one value, and search others.")
        folder = Path(self._config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name="savepoint",
            storage=f"sqlite:///{folder / STUDY}",
            direction="minimize" if self._config.checkpoint.mode == "min" else "maximize",
            load_if_exists=True,
        )
        if (failed := self._train(study, space, fixed)) is not None:
            failed.return_value  # noqa: B018 - reading it raises the job's error

    def _check(self) -> None:
        known = ("n_trials", "n_jobs", "seed", "params")
        for key in known:
            self._settings.setdefault(key, None)
        if unknown := self._settings.keys() - {*known}:
            raise UserError(f"hydra.sweeper has no key {min(unknown)}. It has: {', '.join(known)}.")
        for key, least in (("n_trials", 1), ("n_jobs", 1), ("seed", 0)):
            if not isinstance(value := self._settings[key], int) or value < least:
                raise UserError(f"hydra.sweeper.{key}={value}: must be a whole number of {least} or more.")
        if importlib.util.find_spec("optuna") is None:
            raise UserError("A package is missing: pip install 'optuna>=4,<6'")

    def _train(self, study: "Study", space: "dict[str, BaseDistribution]", fixed: list[str]) -> JobReturn | None:
        """Train one batch of jobs after the other, and tell the study the result of each.

        Returns: the first job that failed, if one did.
        """
        failed: JobReturn | None = None
        count, together = self._settings["n_trials"], self._settings["n_jobs"]
        for first in range(0, count, together):
            names = [self._name(number) for number in range(first, min(first + together, count))]
            chosen = [self._choose(study, name, space) for name in names]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in values.items())] for values in chosen]
            self.validate_batch_is_legal(jobs)
            for name, job in zip(names, self._launcher.launch(jobs, initial_job_idx=first), strict=True):
                score = job.return_value if job.status == JobStatus.COMPLETED else None
                if score is None and system.signals.asked() is not None:
                    return None  # the job was interrupted: a resume goes on with this trial
                if job.status == JobStatus.FAILED:
                    failed = failed or job
                trial = _known(study, name)
                assert trial is not None
                # A trial that has a result already keeps it: later choices were made from that result.
                study.tell(trial.number, *_outcome(score), skip_if_finished=True)
        return failed

    def _name(self, number: int) -> str:
        """Return the name of a job's directory: 0, 1, …, or 1-0, 1-1, … for jobs that were added to the sweep."""
        sweep: Any = OmegaConf.to_container(self._config.hydra.sweep, resolve=False)
        return str(sweep["subdir"]).replace("${hydra.job.num}", str(number))

    def _choose(self, study: "Study", name: str, space: "dict[str, BaseDistribution]") -> dict[str, Any]:
        """Return a value for each key. A job that the study has already keeps the values chosen before."""
        from optuna import create_study, samplers, trial

        if (known := _known(study, name)) is not None:
            return known.params
        # A sampler's generator is not in the study and would be lost. So each job gets a new sampler with its own seed.
        sampler = samplers.TPESampler(seed=self._settings["seed"] + len(study.trials))
        chooser = create_study(direction=study.direction, sampler=sampler)
        chooser.add_trials(study.get_trials(states=(trial.TrialState.COMPLETE,)))
        params = chooser.ask(space).params
        # One call adds the whole trial: after a kill, the study has it with all of its values or not at all.
        study.add_trial(
            trial.create_trial(
                state=trial.TrialState.RUNNING, params=params, distributions=space, user_attrs={"job": name}
            )
        )
        return params


def _known(study: "Study", name: str) -> "FrozenTrial | None":
    return next((trial for trial in study.trials if trial.user_attrs["job"] == name), None)


def _outcome(score: float | None) -> tuple[Any, Any]:
    """Return a job's value and state for Optuna. A job without a finite score counts as failed."""
    from optuna.trial import TrialState

    if score is None or not math.isfinite(score):
        return None, TrialState.FAIL
    return score, TrialState.COMPLETE


def _distribution(override: Override) -> "BaseDistribution":
    """Return the values of a sweep override as a distribution of Optuna's.

    Raises: UserError if an interval has no values.
    """
    from optuna import distributions

    value: Any = override.value()
    if not isinstance(value, IntervalSweep):
        return distributions.CategoricalDistribution([*override.sweep_string_iterator()])
    log = "log" in value.tags
    try:
        if isinstance(value.start, int) and isinstance(value.end, int):
            return distributions.IntDistribution(value.start, value.end, log=log)
        return distributions.FloatDistribution(value.start or 0.0, value.end or 0.0, log=log)
    except ValueError:
        least = "more than 0, and " if log else ""
        raise UserError(f"{override.input_line}: the first number must be {least}at most the second.") from None
