"""Read the closed groups of a config into frozen dataclasses, and report all wrong keys, types and ranges together.

Standard library only, because `train.py` reads settings before it imports torch.
"""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from savepoint.config.annotations import misfit

SEEDS = 2**64  # seeds are below; torch.manual_seed takes negative ones too

_OPEN_GROUPS = ("model", "task", "optimizer")  # their keys belong to the class that they name
_SCALARS = ("seed", "name", "init_from")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?")

Check = Callable[[typing.Any], str | None]


def at_least(least: int) -> Check:
    return lambda value: f"must be at least {least}" if value < least else None


def above(bound: float) -> Check:
    return lambda value: f"must be greater than {bound:g}" if value <= bound else None


def between(low: float, high: float) -> Check:
    return lambda value: f"must be between {low:g} and {high:g}, both excluded" if not low < value < high else None


def one_of(*choices: str) -> Check:
    return lambda value: f"must be one of {', '.join(choices)}" if value not in choices else None


def not_empty(value: str) -> str | None:
    return "must not be empty" if not value.strip() else None


def _registrable(value: str) -> str | None:
    return None if re.fullmatch(r"[\w .-]*\w[\w .-]*", value) else "must be letters, digits, blanks and .-_"


def a_device(value: str) -> str | None:
    return None if _DEVICE.fullmatch(value) else "must be auto, cpu, mps, cuda or cuda:<index>"


def setting(default: typing.Any = dataclasses.MISSING, check: Check | None = None) -> typing.Any:
    """Declare a field whose value, unless it is None, has to pass `check`."""
    return field(default=default, metadata={"check": check} if check else {})


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    max_epochs: int | None = setting(20, at_least(1))
    max_steps: int | None = setting(None, at_least(1))
    patience: int | None = setting(None, at_least(1))
    evaluate_every_n_steps: int | None = setting(None, at_least(1))
    evaluate_first: bool = False
    test: bool = False
    figures_every_n_epochs: int | None = setting(None, at_least(1))
    accumulate: int = setting(1, at_least(1))
    clip_grad_norm: float | None = setting(None, above(0))
    ema_decay: float | None = setting(None, between(0, 1))
    device: str = setting("auto", a_device)
    compile: bool = False
    deterministic: bool = True
    threads: int | None = setting(None, at_least(1))
    log_every_n_steps: int | None = setting(50, at_least(1))
    log_grad_norm: bool = False
    on_nonfinite: str = setting("warn", one_of("warn", "stop"))
    detect_anomaly: bool = False
    profile: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    every_n_epochs: int | None = setting(1, at_least(1))
    every_n_steps: int | None = setting(None, at_least(1))
    every_n_minutes: float | None = setting(None, above(0))
    keep_last: int = setting(2, at_least(1))
    keep_best: int = setting(1, at_least(0))
    keep_every_n_epochs: int | None = setting(None, at_least(1))
    monitor: str | None = setting("val/loss", not_empty)
    mode: str = setting("min", one_of("min", "max"))
    async_save: bool = True
    upload: bool = True


@dataclass(frozen=True, kw_only=True)
class AmpSettings:
    dtype: str | None = setting(None, one_of("bfloat16", "float16"))
    init_scale: float = setting(65536.0, above(0))
    growth_factor: float = setting(2.0, above(1))
    backoff_factor: float = setting(0.5, between(0, 1))
    growth_interval: int = setting(2000, at_least(1))


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    kind: str = setting(check=one_of("mlflow", "aim", "none"))
    experiment: str = setting("savepoint", not_empty)
    uri: str | None = setting(None, not_empty)
    register_as: str | None = setting(None, _registrable)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The keys of `data` but `dataset`, `sampler` and `collate`, whose keys are arguments of the classes they name."""

    batch_size: int = setting(check=at_least(1))
    num_workers: int = setting(0, at_least(0))
    shuffle: bool = True
    drop_last: bool = False
    limit_batches: int | None = setting(None, at_least(1))
    prefetch: int = setting(2, at_least(1))
    persistent_workers: bool = True
    pin_memory: bool = True


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """When a scheduler steps. The other keys of the group are arguments of the class that it names."""

    interval: str = setting("epoch", one_of("epoch", "step"))
    monitor: str | None = setting(None, not_empty)


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """Which weights of `init_from` are loaded, and which parameters are not trained. See docs/weights.md."""

    include: str | list[str] | None = None
    exclude: str | list[str] | None = None
    rename: dict[str, str] | None = None
    strict: bool = True
    freeze: str | list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    trainer: TrainerSettings
    checkpoint: CheckpointSettings
    amp: AmpSettings
    tracker: TrackerSettings
    data: DataSettings
    init: InitSettings
    schedulers: Mapping[str, SchedulerSettings]  # by name; that of a config with one scheduler for all is under ""
    seed: int = setting(check=lambda value: None if 0 <= value < SEEDS else "must be at least 0 and below 2**64")
    name: str | None = setting(None, not_empty)
    init_from: str | None = setting(None, not_empty)

    def schedule(self, optimizer: str) -> SchedulerSettings:
        """Return the settings of the scheduler of an optimizer, by its name."""
        return self.schedulers.get(optimizer) or self.schedulers.get("") or SchedulerSettings()


GROUPS = {
    "trainer": TrainerSettings,
    "checkpoint": CheckpointSettings,
    "amp": AmpSettings,
    "tracker": TrackerSettings,
    "data": DataSettings,
    "init": InitSettings,
}


def by_name(node: Mapping[str, typing.Any]) -> Mapping[str, typing.Any]:
    """Return the parts of `optimizer` or `scheduler` by name. A group that is one class is its only part, under "".

    >>> by_name({"_target_": "torch.optim.Adam", "lr": 0.1}), by_name({"a": {"_target_": "torch.optim.Adam"}})
    ({'': {'_target_': 'torch.optim.Adam', 'lr': 0.1}}, {'a': {'_target_': 'torch.optim.Adam'}})
    """
    several = node and "_target_" not in node and all(isinstance(each, Mapping) for each in node.values())
    return node if several else {"": node}


def read_settings(config: Mapping[str, object]) -> tuple[Settings | None, list[str]]:
    """Read the closed groups of a resolved config. Returns: settings and no faults, or None and a line for each fault.

    >>> data, tracker = {"batch_size": 64}, {"kind": "none"}
    >>> read_settings({"seed": 1, "trainer": {"max_epochs": -1}, "data": data, "tracker": tracker})
    (None, ['trainer.max_epochs=-1: must be at least 1.'])
    """
    faults: list[str] = []
    known = {*_OPEN_GROUPS, *_SCALARS, *GROUPS, "scheduler"}
    # `resume` says what to do and not what to train: `resolve` takes it out, and nothing reads it here.
    unknown = [key for key in config if key not in known and (key, config[key]) != ("resume", None)]
    faults += [_unknown("", key, "the config", known) for key in unknown]
    values: dict[str, object] = {}
    for group, cls in GROUPS.items():
        values[group] = _read_group(group, cls, config.get(group), faults)
    schedulers = config.get("scheduler")
    parts = by_name(schedulers) if isinstance(schedulers, Mapping) else {"": schedulers}
    values["schedulers"] = {
        name: _read_group(f"scheduler.{name}".rstrip("."), SchedulerSettings, each, faults)
        for name, each in parts.items()
    }
    scalars = {key: config[key] for key in _SCALARS if key in config}
    values |= _read_fields("", Settings, scalars, faults)
    return (None, faults) if faults else (Settings(**typing.cast(typing.Any, values)), [])


def closest(word: str, words: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return " Did you mean x?" with the word that is most alike, or "" if none is."""
    near = difflib.get_close_matches(word, sorted(words), n=1, cutoff=likeness)
    return f" Did you mean {near[0]}?" if near else ""


def _read_group(group: str, cls: type, node: object, faults: list[str]) -> object:
    if node is None:
        node = {}  # a missing group has its defaults; trust.check_config refuses it for a run
    if not isinstance(node, Mapping):
        faults.append(f"{group}={node!r}: must be a group of settings.")
        return None
    classes = {"dataset", "sampler", "collate"} if group == "data" else set()
    known = {f.name for f in dataclasses.fields(cls)} | classes
    if cls is not SchedulerSettings:  # whose other keys are arguments of a class
        faults += [_unknown(f"{group}.", key, group, known) for key in node if key not in known]
    before = len(faults)
    values = _read_fields(f"{group}.", cls, node, faults)
    if (
        group == "trainer"
        and values.get("max_epochs") is None
        and values.get("max_steps") is None
        and len(faults) == before
    ):
        faults.append("trainer.max_epochs=None, trainer.max_steps=None: training needs an end. Set one of them.")
    return cls(**values) if len(faults) == before else None


def _read_fields(prefix: str, cls: type, node: Mapping[str, object], faults: list[str]) -> dict[str, typing.Any]:
    values: dict[str, typing.Any] = {}
    for f in dataclasses.fields(cls):
        if f.name in node:
            value, fault = _read_value(node[f.name], f.type, f.metadata.get("check"))
            values[f.name] = value
            if fault:
                faults.append(f"{prefix}{f.name}={node[f.name]!r}: {fault}.")
        elif f.default is not dataclasses.MISSING:
            values[f.name] = f.default
        elif prefix or f.name in _SCALARS:
            faults.append(f"{prefix}{f.name} is not set, and has no default.")
    return values


def _read_value(value: object, annotation: object, check: Check | None) -> tuple[object, str | None]:
    if fault := misfit(value, annotation):
        return value, fault
    if type(value) is int and float in (annotation, *typing.get_args(annotation)):
        # An int too large for a float becomes infinity here and is refused as such below.
        value = float(value) if abs(value) < 2**1023 else math.inf
    if isinstance(value, float) and not math.isfinite(value):
        return value, "must be finite"
    return value, check(value) if check and value is not None else None


def _unknown(prefix: str, key: object, owner: str, known: set[str]) -> str:
    shown = str(key) if str(key).isprintable() else ascii(key)
    return f"{prefix}{shown}: {owner} has no such key.{closest(shown, known)} It has: {', '.join(sorted(known))}."
