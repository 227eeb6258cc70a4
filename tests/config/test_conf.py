"""conf/: every option composes, says all there is to say, and names classes and keywords that exist."""

import dataclasses
import importlib
import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from tools import needs

from project.targets import TARGETS
from savepoint import config as configs
from savepoint.config import settings

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
PRESETS = ("experiment", "debug")
# Given by the engine, or of use only to torch's own restarts: not a setting.
NOT_SETTINGS = {"optimizer", "params", "split", "last_epoch", "step"}
NOT_IN_A_LOOP = {"capturable", "differentiable"}
# Arguments that only newer versions of torch take: a config that gives them would not train with the oldest supported.
LATER = {"torch.optim.LBFGS": {"maximize"}}  # since torch 2.14
every_option = pytest.mark.parametrize(
    ("group", "option"),
    [pytest.param(*each, id="=".join(each), marks=[needs.muon] if "muon" in each else []) for each in OPTIONS],
)


def text(group: str, option: str) -> str:
    return (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")


def read(group: str, option: str) -> dict[str, Any]:
    config = yaml.safe_load(text(group, option))
    assert isinstance(config, dict)
    return config


def composed(*overrides: str, conf: Path = CONF) -> dict[str, Any]:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return configs.resolve(compose("config", list(overrides)))


def scalars(node: Any) -> Iterator[Any]:
    """Every key and every value of a config, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from scalars(value)
    elif isinstance(node, list):
        for value in node:
            yield from scalars(value)
    else:
        yield node


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Every node that names a class."""
    if isinstance(node, dict):
        if node.get("_target_") is not None:
            yield node
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def resolve(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_group_of_the_design_has_its_options() -> None:
    promised = {
        "model": {"mlp", "cnn", "embedding", "transformer"},
        "data": {"digits", "diabetes", "csv", "text"},
        "task": {"classification", "regression", "language_model"},
        "optimizer": {
            *("adadelta", "adafactor", "adagrad", "adam", "adamw", "adamax", "asgd", "lbfgs", "muon", "nadam", "radam"),
            *("rmsprop", "rprop", "sgd", "sparse_adam"),
        },
        "scheduler": {
            *("none", "step", "multistep", "constant", "linear", "exponential", "polynomial", "cosine", "swa"),
            *("cosine_warm_restarts", "onecycle", "cyclic", "plateau", "lambda", "multiplicative", "sequential"),
            *("chained", "warmup_cosine"),
        },
        "amp": {"none", "bf16", "fp16"},
        "trainer": {"default"},
        "checkpoint": {"default"},
        "tracker": {"mlflow", "aim", "clearml", "none"},
        "debug": {"one_batch", "overfit", "anomaly", "profiler"},
        "experiment": {"digits_cnn", "diabetes", "characters"},
    }
    for group, options in promised.items():
        assert options <= {option for found, option in OPTIONS if found == group}, group


@every_option
def test_option_names_are_lower_snake_case_and_no_yaml_boolean(group: str, option: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", option)
    assert option not in ("off", "on", "yes", "no", "true", "false", "null")


@every_option
def test_yaml_reads_as_it_is_written(group: str, option: str) -> None:
    written = list(scalars(yaml.load(text(group, option), Loader=yaml.BaseLoader)))
    assert not {"on", "off", "yes", "no", "y", "n"} & {word.lower() for word in written}, "a boolean in disguise"
    for value in scalars(read(group, option)):
        # YAML 1.1 takes 1e-3 for text: it has to be 0.001 or 1.0e-3.
        assert not (isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value, re.I)), value


def test_a_data_set_need_not_repeat_how_it_is_batched() -> None:
    """conf/config.yaml spells out the closed part of `data`, so that a fork's file says only what differs."""
    shared = yaml.safe_load((CONF / "config.yaml").read_text())["data"]
    assert set(shared) == {field.name for field in dataclasses.fields(settings.DataSettings)} | {"sampler", "collate"}
    for path in (CONF / "data").glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) - {"dataset"} <= set(shared), path


@pytest.mark.parametrize("group", ["trainer", "checkpoint", "amp", "tracker"])
def test_closed_groups_spell_out_exactly_the_keys_of_their_settings(group: str) -> None:
    names = {field.name for field in dataclasses.fields(settings.GROUPS[group])}
    for option in (option for found, option in OPTIONS if found == group):
        assert set(read(group, option)) - {"dataset"} == names, option


@pytest.mark.parametrize(("group", "option"), [("trainer", "default"), ("checkpoint", "default"), ("amp", "none")])
def test_default_options_hold_the_defaults_of_their_settings(group: str, option: str) -> None:
    assert settings.GROUPS[group](**read(group, option)) == settings.GROUPS[group]()


@every_option
def test_every_target_is_a_class_under_that_name(group: str, option: str) -> None:
    for node in targets(read(group, option)):
        target = resolve(node["_target_"])
        assert inspect.isclass(target) or node["_target_"] in TARGETS
        assert target.__name__ == node["_target_"].rpartition(".")[2]


@every_option
def test_every_keyword_is_a_parameter_of_its_class(group: str, option: str) -> None:
    for node in targets(read(group, option)):
        keywords = set(node) - {"_target_", "_partial_", "defaults"}
        if group == "scheduler":
            keywords -= {"interval", "monitor"}
        if group == "optimizer":
            keywords -= {"fallback", "weight_decay_on"}
        parameters = set(inspect.signature(resolve(node["_target_"])).parameters)
        assert keywords <= parameters - NOT_SETTINGS
        if node["_target_"].startswith("project."):
            assert keywords == parameters - NOT_SETTINGS, "`--cfg job` shows all there is"
        if group == "optimizer":
            later = LATER.get(node["_target_"], set())
            assert keywords == parameters - NOT_SETTINGS - NOT_IN_A_LOOP - later, "`--cfg job` shows all there is"


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "optimizer"])
def test_every_optimizer_that_decays_weights_says_which(option: str) -> None:
    config = read("optimizer", option)
    decays = any("weight_decay" in node for node in targets(config))
    assert config.get("weight_decay_on") == ("all" if decays else None)


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "scheduler"])
def test_every_scheduler_says_when_it_steps_and_what_it_watches(option: str) -> None:
    config = read("scheduler", option)
    assert config["interval"] in ("epoch", "step")
    assert (config["monitor"] is not None) == (option == "plateau")
    lengths = {"T_max", "total_steps"} | ({"total_iters"} if option in ("linear", "polynomial") else set())
    for length in lengths & set(config):
        assert config[length] is None, "planned from the end of training"


def test_onecycle_peaks_at_the_rate_of_the_optimizer() -> None:
    assert composed("scheduler=onecycle", "optimizer=sgd", "optimizer.lr=0.25")["scheduler"]["max_lr"] == 0.25


def test_presets_change_what_exists_and_add_nothing() -> None:
    def keys(node: Any, path: str = "") -> set[str]:
        if not isinstance(node, dict):
            return {path}
        return {path}.union(*(keys(value, f"{path}.{key}") for key, value in node.items()))

    for group, option in OPTIONS:
        if group not in PRESETS:
            continue
        assert text(group, option).startswith("# @package _global_\n")
        chosen = [
            f"{key.removeprefix('override /')}={value}"
            for entry in read(group, option).get("defaults", [])
            for key, value in entry.items()
        ]
        assert keys(composed(f"{group}={option}")) == keys(composed(*chosen)), option


def test_a_debug_preset_wins_over_an_experiment_and_the_command_line_over_both() -> None:
    both = composed("experiment=digits_cnn", "debug=overfit")
    assert both["model"]["_target_"].endswith("Cnn")
    assert both["scheduler"]["_target_"] is None
    assert both["trainer"]["max_epochs"] == 200
    mine = composed("experiment=digits_cnn", "debug=overfit", "trainer.max_epochs=3", "tracker=mlflow", "optimizer=sgd")
    assert mine["trainer"]["max_epochs"] == 3
    assert mine["tracker"]["kind"] == "mlflow"
    assert mine["optimizer"]["_target_"].endswith("SGD")


def classes(*overrides: str, conf: Path = CONF) -> tuple[str, ...]:
    """The names of the classes of model, data and task."""
    config = composed(*overrides, conf=conf)
    nodes = (config["model"], config["data"]["dataset"], config["task"])
    return tuple(node["_target_"].rpartition(".")[2] for node in nodes)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", ("Mlp", "Digits", "Classification")),
        ("task=language_model", ("Transformer", "Text", "LanguageModel")),
        ("model=transformer task=language_model", ("Transformer", "Text", "LanguageModel")),
        ("task=regression", ("Mlp", "Diabetes", "Regression")),
        ("task=language_model data=digits", ("Transformer", "Digits", "LanguageModel")),
        ("data=digits model=mlp task=language_model", ("Mlp", "Digits", "LanguageModel")),
        ("data=csv task=regression", ("Mlp", "Csv", "Regression")),
        ("experiment=digits_cnn", ("Cnn", "Digits", "Classification")),
        ("experiment=characters", ("Transformer", "Text", "LanguageModel")),
        ("experiment=characters data=csv", ("Transformer", "Csv", "LanguageModel")),
        ("experiment=digits_cnn task=language_model", ("Cnn", "Text", "LanguageModel")),
    ],
)
def test_a_task_brings_its_data_along_and_what_is_chosen_wins(overrides: str, expected: tuple[str, ...]) -> None:
    assert classes(*overrides.split()) == expected


def test_a_task_of_ones_own_need_not_bring_anything(tmp_path: Path) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    (conf / "task" / "own.yaml").write_text("_target_: project.tasks.own.Own\n")
    assert classes("task=own", conf=conf) == ("Mlp", "Digits", "Own")
    assert classes("task=own", "data=text", conf=conf) == ("Mlp", "Text", "Own")


def test_what_a_task_brings_leaves_no_trace_in_the_config() -> None:
    for option in (option for group, option in OPTIONS if group == "task"):
        assert set(composed(f"task={option}")["task"]) == set(read("task", option)) - {"defaults"}


def test_a_transformer_is_as_long_as_the_windows_of_the_data() -> None:
    assert composed("model=transformer")["model"]["context"] == 64
    assert composed("task=language_model", "data.dataset.context=100")["model"]["context"] == 100
    both = composed("task=language_model", "data.dataset.context=100", "model.context=128")
    assert (both["data"]["dataset"]["context"], both["model"]["context"]) == (100, 128)


# --help

HELP = configs.help_text([], CONF)


@every_option
def test_help_says_what_an_option_is_in_the_first_line_of_its_file(group: str, option: str) -> None:
    summary = configs.summary(CONF / group / f"{option}.yaml")
    assert summary[:1].isupper() or summary[:1].isdigit(), "a sentence"
    assert summary.endswith("."), "a whole one"
    assert re.search(rf"^    {option}  +{re.escape(summary)}$", HELP, re.MULTILINE)


def test_help_fits_a_terminal() -> None:
    assert max(map(len, HELP.splitlines())) <= 80


def test_help_shows_the_default_of_each_group() -> None:
    for line in ("  optimizer=adamw", "  scheduler=none", "  experiment", "  model=mlp"):
        assert f"\n{line}\n" in HELP


def test_help_lists_files_that_say_little_or_too_much(tmp_path: Path) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    (conf / "model" / "bare.yaml").write_text("_target_: project.models.mlp.Mlp  # no comment\n")
    (conf / "model" / "empty.yaml").write_text("")
    (conf / "model" / "wordy.yaml").write_text("# @package _global_\n\n# " + 30 * "words " + "\na: 1\n")
    (conf / "model" / "pasted.yaml").write_text("# conf/model/pasted.yaml\n# From a page.\na: 1\n")
    (conf / "model" / "folder.yaml").mkdir()
    (conf / "model" / "broken.yaml").symlink_to(conf / "nowhere.yaml")
    lines = configs.help_text([], conf).splitlines()
    assert {"    bare", "    empty", "    folder", "    broken"} <= {*lines}
    assert "    pasted       From a page." in lines
    (wordy,) = [line for line in lines if line.startswith("    wordy")]
    assert wordy.endswith("words …") and len(wordy) <= 80


def test_help_is_shown_where_a_default_is_left_open(tmp_path: Path) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    text = (conf / "config.yaml").read_text()
    (conf / "config.yaml").write_text(text.replace("- model: mlp", "- model: ???"))
    assert "\n  model\n    cnn " in (shown := configs.help_text([], conf)) and "leaves open model." in shown
    assert "_target_: project.models.cnn.Cnn" in configs.help_text(["model=cnn"], conf)
