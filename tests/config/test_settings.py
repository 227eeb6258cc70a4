"""The closed groups: what is refused, how it is worded, and that all of it is said at once."""

import copy
import dataclasses
import doctest
import os
import subprocess
import sys

import pytest
from tools.processes import REPOSITORY

from savepoint.config import Settings, read_settings, reading, settings

GOOD: dict[str, object] = {
    "seed": 1,
    "name": None,
    "init_from": None,
    "model": {"_target_": "project.models.mlp.MLP", "anything": 3},
    "data": {"dataset": {"_target_": "project.data.digits.Digits"}, "batch_size": 64},
    "task": {},
    "optimizer": {"lr": 0.1},
    "scheduler": {"_target_": None, "interval": "epoch", "monitor": None, "T_max": 3},
    "amp": {"dtype": None},
    "trainer": {"max_epochs": 20},
    "checkpoint": {},
    "tracker": {"kind": "none"},
}


def with_(path: str, value: object) -> dict[str, object]:
    config = copy.deepcopy(GOOD)
    node = config
    *parents, key = path.split(".")
    for parent in parents:
        node = node[parent]  # type: ignore[assignment]
    node[key] = value
    return config


def faults(path: str, value: object) -> list[str]:
    found, lines = read_settings(with_(path, value))
    assert (found is None) == bool(lines)
    return lines


def test_a_good_config_has_no_faults_and_its_defaults() -> None:
    found, lines = read_settings(GOOD)
    assert lines == []
    assert isinstance(found, Settings)
    assert found.trainer == settings.TrainerSettings()
    assert found.checkpoint == settings.CheckpointSettings()
    assert found.amp == settings.AmpSettings()
    assert found.data == settings.DataSettings(batch_size=64)
    assert (found.seed, found.name, found.init_from) == (1, None, None)


def test_settings_are_frozen() -> None:
    found, _ = read_settings(GOOD)
    assert found is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.trainer.max_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("trainer.max_epochs", -1, "trainer.max_epochs=-1: must be at least 1."),
        ("trainer.max_epochs", 0, "trainer.max_epochs=0: must be at least 1."),
        ("trainer.max_epochs", 1.0, "trainer.max_epochs=1.0: must be a whole number or null, and is a number with a fraction."),
        ("trainer.max_epochs", True, "trainer.max_epochs=True: must be a whole number or null, and is a boolean."),
        ("trainer.max_epochs", "5", "trainer.max_epochs='5': must be a whole number or null, and is text."),
        ("trainer.max_epochs", [5], "trainer.max_epochs=[5]: must be a whole number or null, and is a list."),
        ("trainer.max_epochs", None, "trainer.max_epochs=None, trainer.max_steps=None: training needs an end. Set one of them."),
        ("trainer.max_steps", 0, "trainer.max_steps=0: must be at least 1."),
        ("trainer.accumulate", 0, "trainer.accumulate=0: must be at least 1."),
        ("trainer.accumulate", None, "trainer.accumulate=None: must be a whole number, and is null."),
        ("trainer.clip_grad_norm", 0, "trainer.clip_grad_norm=0: must be greater than 0."),
        ("trainer.clip_grad_norm", float("nan"), "trainer.clip_grad_norm=nan: must be finite."),
        ("trainer.clip_grad_norm", float("inf"), "trainer.clip_grad_norm=inf: must be finite."),
        ("trainer.clip_grad_norm", False, "trainer.clip_grad_norm=False: must be a number or null, and is a boolean."),
        ("trainer.device", "gpu", "trainer.device='gpu': must be auto, cpu, mps, cuda or cuda:<index>."),
        ("trainer.device", "cuda:x", "trainer.device='cuda:x': must be auto, cpu, mps, cuda or cuda:<index>."),
        ("trainer.device", "cuda:0\n", "trainer.device='cuda:0\\n': must be auto, cpu, mps, cuda or cuda:<index>."),
        ("trainer.compile", 1, "trainer.compile=1: must be true or false, and is a whole number."),
        ("trainer.deterministic", None, "trainer.deterministic=None: must be true or false, and is null."),
        ("trainer.threads", 0, "trainer.threads=0: must be at least 1."),
        ("trainer.log_every_n_steps", 0, "trainer.log_every_n_steps=0: must be at least 1."),
        ("checkpoint.keep_last", 0, "checkpoint.keep_last=0: must be at least 1."),
        ("checkpoint.keep_best", -1, "checkpoint.keep_best=-1: must be at least 0."),
        ("checkpoint.every_n_epochs", 0, "checkpoint.every_n_epochs=0: must be at least 1."),
        ("checkpoint.every_n_steps", 0, "checkpoint.every_n_steps=0: must be at least 1."),
        ("checkpoint.mode", "lowest", "checkpoint.mode='lowest': must be one of min, max."),
        ("checkpoint.monitor", "", "checkpoint.monitor='': must not be empty."),
        ("amp.dtype", "fp16", "amp.dtype='fp16': must be one of bfloat16, float16."),
        ("amp.init_scale", 0, "amp.init_scale=0: must be greater than 0."),
        ("amp.growth_factor", 1, "amp.growth_factor=1: must be greater than 1."),
        ("amp.backoff_factor", 1, "amp.backoff_factor=1: must be between 0 and 1, both excluded."),
        ("amp.backoff_factor", 0.0, "amp.backoff_factor=0.0: must be between 0 and 1, both excluded."),
        ("amp.growth_interval", 0, "amp.growth_interval=0: must be at least 1."),
        (
            "tracker.kind",
            "a.b",
            "tracker.kind='a.b': must be mlflow, aim, clearml, none, or the name of a module in trackers/ of your package.",
        ),
        ("tracker.experiment", " ", "tracker.experiment=' ': must not be empty."),
        ("data.batch_size", 0, "data.batch_size=0: must be at least 1."),
        ("data.num_workers", -1, "data.num_workers=-1: must be at least 0."),
        ("data.limit_batches", 0, "data.limit_batches=0: must be at least 1."),
        ("data.prefetch", 0, "data.prefetch=0: must be at least 1."),
        ("scheduler.interval", "batch", "scheduler.interval='batch': must be one of epoch, step."),
        ("scheduler.monitor", 3, "scheduler.monitor=3: must be text or null, and is a whole number."),
        ("seed", -1, "seed=-1: must be at least 0 and below 2**64."),
        ("seed", 2**64, "seed=18446744073709551616: must be at least 0 and below 2**64."),
        ("seed", None, "seed=None: must be a whole number, and is null."),
        ("name", 3, "name=3: must be text or null, and is a whole number."),
        ("trainer", 3, "trainer=3: must be a group of settings."),
        ("trainer", ["max_epochs"], "trainer=['max_epochs']: must be a group of settings."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_it_must_be(path: str, value: object, fault: str) -> None:
    assert faults(path, value) == [fault]


@pytest.mark.parametrize(
    ("path", "value"),
    [("seed", 2**64 - 1), ("seed", 0), ("trainer.device", "cuda:1"), ("trainer.device", "mps"), ("amp.dtype", "float16"),
     ("checkpoint.monitor", None), ("checkpoint.keep_best", 0), ("trainer.log_every_n_steps", None),
     ("tracker", {"kind": "mlflow", "uri": "sqlite:///x.db"}), ("name", "first try")],
)  # fmt: skip
def test_the_ends_of_each_range_are_allowed(path: str, value: object) -> None:
    assert faults(path, value) == []


def test_a_whole_number_given_for_a_float_becomes_a_float() -> None:
    found, _ = read_settings(with_("trainer.clip_grad_norm", 1))
    assert found is not None
    assert type(found.trainer.clip_grad_norm) is float
    assert faults("trainer.clip_grad_norm", 10**400) == [f"trainer.clip_grad_norm={10**400}: must be finite."]


def test_an_unknown_key_is_refused_with_the_nearest_and_with_all() -> None:
    assert faults("trainer.max_epoch", 5) == [
        "trainer.max_epoch: trainer has no such key. Did you mean max_epochs? It has: accumulate, clip_grad_norm, "
        "compile, detect_anomaly, deterministic, device, ema_decay, evaluate_every_n_steps, evaluate_first, "
        "figures_every_n_epochs, log_every_n_steps, log_grad_norm, max_epochs, max_steps, on_nonfinite, parallel, "
        "patience, processes, profile, test, threads, timeout_seconds."
    ]
    assert faults("optimiser", {})[0].startswith(
        "optimiser: the config has no such key. Did you mean optimizer? It has: amp,"
    )
    assert "Did you mean dataset?" in faults("data.datasets", {})[0]
    assert faults("data.smpler", {}) == [
        "data.smpler: data has no such key. Did you mean sampler? It has: batch_size, collate, dataset, drop_last, limit_batches, "
        "num_workers, persistent_workers, pin_memory, prefetch, sampler, shuffle."
    ]


def test_keys_of_open_groups_are_left_to_the_class_that_they_name() -> None:
    for path in ("model.hiden", "optimizer.lrr", "scheduler.T_maxx", "data.dataset.rooot", "data.sampler", "task.x"):
        assert faults(path, 3) == []


def test_what_has_no_default_must_be_set() -> None:
    _, lines = read_settings({"seed": 1})
    assert lines == ["tracker.kind is not set, and has no default.", "data.batch_size is not set, and has no default."]
    _, lines = read_settings({"tracker": {"kind": "none"}, "data": {"batch_size": 1}})
    assert lines == ["seed is not set, and has no default."]


def test_all_faults_of_all_groups_are_reported_together() -> None:
    config = with_("trainer.max_epochs", -1)
    config["checkpoint"] = {"mode": "x", "keep_lasst": 1}
    config["seed"] = "one"
    config["extra"] = 1
    _, lines = read_settings(config)
    assert [line.split(":")[0].split("=")[0] for line in lines] == [
        "extra", "trainer.max_epochs", "checkpoint.keep_lasst", "checkpoint.mode", "seed"]  # fmt: skip


def test_the_example_in_the_docstring_runs() -> None:
    assert doctest.testmod(settings).failed + doctest.testmod(reading).failed == 0


def test_reading_settings_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, savepoint.config.reading; sys.exit(any(m in sys.modules for m in ('torch', 'hydra', 'omegaconf')))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
