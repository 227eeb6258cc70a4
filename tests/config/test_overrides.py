"""Overrides: Hydra's errors in a line, and changes to a stored config."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tools.processes import REPOSITORY

from savepoint.config import apply_overrides, explain
from savepoint.errors import ConfigError

CONF = {
    "config.yaml": (
        "defaults:\n  - _self_\n  - model: mlp\n  - optimizer: adamw\n  - scheduler: none\n  - trainer: default\n"
        "  - experiment: null\nseed: 0\nname: null\ninit_from: null\n"
    ),
    "model/mlp.yaml": "_target_: project.models.mlp.Mlp\nhidden: 64\nlayers: [1, 2]\n",
    "model/cnn.yaml": "_target_: project.models.cnn.Cnn\nwidth: 16\n",
    "optimizer/adamw.yaml": "_target_: torch.optim.AdamW\nlr: 0.001\n",
    "optimizer/sgd.yaml": "_target_: torch.optim.SGD\nlr: 0.1\nmomentum: 0.9\n",
    "scheduler/none.yaml": "_target_: null\n",
    "scheduler/onecycle.yaml": "_target_: torch.optim.lr_scheduler.OneCycleLR\nmax_lr: ${optimizer.lr}\n",
    "scheduler/lost.yaml": "max_lr: ${optimizer.nowhere}\n",
    "trainer/default.yaml": "max_epochs: 20\nmax_steps: null\nprofile: false\n",
    "experiment/quick.yaml": "# @package _global_\ntrainer:\n  max_epochs: 1\n",
}
TOP = "experiment, init_from, model, name, optimizer, scheduler, seed, trainer"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    for name, text in CONF.items():
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "conf"


def composed(conf: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", list(overrides)), resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]


def told(conf: Path, *overrides: str) -> str | None:
    try:
        composed(conf, *overrides)
    except Exception as error:  # whatever Hydra raises
        return explain(error, list(overrides), conf)
    raise AssertionError("Hydra took it")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer=adamm", "optimizer has no option adamm. Did you mean adamw? It has: adamw, sgd."),
        ("optimizer=null", "optimizer has no option null. It has: adamw, sgd."),
        ("optimizer=3", "optimizer has no option 3. It has: adamw, sgd."),
        ("optimizer=[adamw,x]", "optimizer has no option x. It has: adamw, sgd."),
        ("optimizer=1,2", "several values make a sweep: add -m."),
        ("experiment=quik", "experiment has no option quik. Did you mean quick? It has: quick."),
        ("optimiser=adam", f"the config has no key optimiser. Did you mean optimizer? It has: {TOP}."),
        ("foo=1", f"the config has no key foo. It has: {TOP}."),
        ("foo.bar=1", f"the config has no key foo. It has: {TOP}."),
        ("foo/bar=1", f"the config has no key foo/bar. It has: {TOP}."),
        ("trainer.max_epoch=5", "trainer has no key max_epoch. Did you mean max_epochs? It has: max_epochs, max_steps, profile."),
        ("model.hiden=3", "model has no key hiden. Did you mean hidden? It has: _target_, hidden, layers."),
        ("seed.x=1", "seed is a value, 0, and has no keys."),
        ("model.layers.5=1", "model.layers is a list of 2. Write an index from 0, or the whole list."),
        ("seed=1,2", "several values make a sweep: add -m. If it is one list, write seed=[1,2]."),
        ("optimizer=[adam", "Hydra cannot read the value [adam. Are all brackets and quotes closed? If it is text, quote it: "
                            "'optimizer=\"[adam\"'."),
        ("name=a:b=c", "Hydra cannot read the value a:b=c. Are all brackets and quotes closed? If it is text, quote it: "
                       "'name=\"a:b=c\"'."),
        ("a b=1", "'a b' is not a key. Keys read like trainer.max_epochs."),
        ("trainer.=1", "'trainer.' is not a key. Keys read like trainer.max_epochs."),
        ("a b", "an override reads key=value."),
        ("bare", "an override reads key=value."),
        ("=1", "an override reads key=value."),
        ("--seed=1", "an override has no dashes. Write seed=1."),
        ("~foo", f"the config has no key foo. It has: {TOP}."),
        ("~trainer.foo", "trainer has no key foo. It has: max_epochs, max_steps, profile."),
        ("~optimizer=sgd", "another option is chosen."),
        ("~name", "name is null already. Leave the override out."),
        ("~scheduler._target_", "scheduler._target_ is null already. Leave the override out."),
        ("+trainer.max_epochs=5", "trainer.max_epochs is there already. Write trainer.max_epochs=5."),
        ("+optimizer=sgd", "optimizer is chosen already. Write optimizer=sgd."),
    ],
)  # fmt: skip
def test_hydras_error_becomes_one_line(override: str, line: str, conf: Path) -> None:
    assert told(conf, override) == f"{override}: {line}"


def test_an_empty_override_is_shown_as_such(conf: Path) -> None:
    assert told(conf, "") == "'': an override reads key=value."


def test_all_wrong_overrides_are_named_and_no_right_one(conf: Path) -> None:
    assert told(conf, "foo=1", "seed=2", "optimizer=adamm", "+trainer.new=1", "++seed=3", "trainer.max_epochs=3") == (
        f"foo=1: the config has no key foo. It has: {TOP}.\n"
        "optimizer=adamm: optimizer has no option adamm. Did you mean adamw? It has: adamw, sgd."
    )


def test_keys_are_those_of_the_option_that_was_chosen(conf: Path) -> None:
    assert (
        told(conf, "model=cnn", "model.hidden=3") == "model.hidden=3: model has no key hidden. It has: _target_, width."
    )


def test_a_wrong_option_inside_a_sweep_is_named(conf: Path) -> None:
    from hydra.errors import MissingConfigException

    line = explain(MissingConfigException("x"), ["optimizer=sgd,adamm", "seed=1,2"], conf)
    assert line == "optimizer=sgd,adamm: optimizer has no option adamm. Did you mean adamw? It has: adamw, sgd."


def test_what_is_wrong_in_conf_itself_is_named_by_its_place(conf: Path) -> None:
    assert told(conf, "scheduler=lost") == "scheduler.max_lr: Interpolation key 'optimizer.nowhere' not found."
    (conf / "trainer" / "default.yaml").write_text("max_epochs: ???\n")
    assert told(conf) == "trainer.max_epochs has no value (???). Set it: trainer.max_epochs=…"
    (conf / "trainer" / "default.yaml").write_text("max_epochs: [1\nb: 2\n")
    assert str(told(conf)).startswith(f"{conf / 'trainer' / 'default.yaml'}, line 2: ")
    (conf / "trainer" / "default.yaml").write_text("max_epochs: 1\n")
    (conf / "config.yaml").write_text("defaults:\n  - trainer: defautl\n")
    assert told(conf) == "In 'config': Could not find 'trainer/defautl'. There are: default."


def test_hydras_own_settings_and_packages_get_hydras_own_words(conf: Path) -> None:
    assert told(conf, "hydra.run.dri=x") == "hydra.run.dri: Key 'dri' not in 'RunDir'."
    assert str(told(conf, "hydra/launcher=foo")).startswith(
        "In 'hydra/config': Could not find 'hydra/launcher/foo'. There are: basic"
    )
    assert str(told(conf, "model@foo=cnn")).startswith(
        "Could not override 'model@foo'. Did you mean to override model?"
    )


def test_a_bug_is_not_explained(conf: Path) -> None:
    for error in (ValueError("x"), KeyError("x"), RuntimeError("x"), TypeError("x"), OSError("x")):
        assert explain(error, ["foo=1"], conf) is None


def test_explaining_leaves_the_application_under_way_as_it_was(conf: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    with initialize_config_dir(str(conf), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        assert explain(HydraException("x"), ["foo=1"], conf)
        assert GlobalHydra.instance().hydra is before


def stored(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 7,
        "name": None,
        "model": {"_target_": "project.models.mlp.Mlp", "hidden": 32, "layers": [1, 2], "gone": "010", "small": 1e-05},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.5, "momentum": 0.9},
        "scheduler": {"_target_": None},
        "trainer": {"max_epochs": 5, "max_steps": None},
        **changes,
    }


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("trainer.max_epochs=40", "trainer.max_epochs", 40),
        ("trainer.max_steps=10", "trainer.max_steps", 10),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("name='a b'", "name", "a b"),
        ("name=null", "name", None),
        ("name='40'", "name", "40"),
        ("model.layers=[3,4,5]", "model.layers", [3, 4, 5]),
        ("model.layers.0=9", "model.layers", [9, 2]),
        ("model.gone=x", "model.gone", "x"),
        ("model.hidden=true", "model.hidden", True),
        ("model._target_=os.system", "model._target_", "os.system"),
        ("trainer.profile=true", "trainer.profile", True),
    ],
)
def test_a_value_is_set_in_a_stored_config_and_nothing_else_changes(
    override: str, path: str, value: object, conf: Path
) -> None:
    before = stored()
    kept = copy.deepcopy(before)
    after = apply_overrides(before, [override], conf)
    assert before == kept
    group, _, key = path.partition(".")
    owner = after[group] if key else after
    assert owner[key or group] == value
    assert type(owner[key or group]) is type(value)
    del owner[key or group]
    expected = kept[group] if key else kept
    expected.pop(key or group, None)
    assert after == kept


def test_no_overrides_give_an_equal_config_and_not_the_same(conf: Path) -> None:
    before = stored()
    after = apply_overrides(before, [], conf)
    assert after == before
    assert list(after) == list(before)
    assert after["model"] is not before["model"]
    assert type(after) is dict
    assert type(after["model"]["layers"]) is list


def test_a_run_that_lacks_a_newer_group_takes_its_keys(conf: Path) -> None:
    """A run that was started before conf/ had `fsdp`, say."""
    older = stored()
    del older["trainer"]
    after = apply_overrides(older, ["trainer.max_epochs=3"], conf)
    assert after == older | {"trainer": {"max_epochs": 3}}
    with pytest.raises(ConfigError, match=r"^trainer\.max_epoch=3: "):
        apply_overrides(older, ["trainer.max_epoch=3"], conf)


def test_an_argument_of_another_class_is_not_taken_for_a_newer_key(conf: Path) -> None:
    cnn = {"_target_": "project.models.cnn.Cnn", "width": 1}
    with pytest.raises(ConfigError, match=r"^model\.hidden=3: model has no key hidden\. It has: _target_, width\.$"):
        apply_overrides(stored(model=cnn), ["model.hidden=3"], conf)


def test_an_option_replaces_its_group_by_the_local_one_whole(conf: Path) -> None:
    after = apply_overrides(stored(), ["optimizer=adamw"], conf)
    assert after == stored(optimizer={"_target_": "torch.optim.AdamW", "lr": 0.001})


def test_what_an_option_interpolates_is_read_from_the_stored_config_and_its_overrides(conf: Path) -> None:
    assert apply_overrides(stored(), ["scheduler=onecycle"], conf)["scheduler"]["max_lr"] == 0.5
    assert apply_overrides(stored(), ["scheduler=onecycle", "optimizer.lr=0.25"], conf)["scheduler"]["max_lr"] == 0.25
    with pytest.raises(ConfigError, match=r"^scheduler\.max_lr: Interpolation key 'optimizer\.nowhere' not found"):
        apply_overrides(stored(), ["scheduler=lost"], conf)


def test_options_are_taken_before_values_whatever_the_order(conf: Path) -> None:
    assert apply_overrides(stored(), ["model.width=3", "model=cnn"], conf)["model"] == {
        "_target_": "project.models.cnn.Cnn",
        "width": 3,
    }


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "trainer.max_epoch=5",
            "trainer has no key max_epoch. Did you mean max_epochs? It has: max_epochs, max_steps.",
        ),
        ("optimizer=adamm", "optimizer has no option adamm. Did you mean adamw? It has: adamw, sgd."),
        ("model.width=3", "model has no key width. It has: _target_, gone, hidden, layers, small."),
        ("seed=1,2", "resume trains one run. For several, start a sweep: python train.py -m …"),
        ("optimizer=sgd,adamw", "resume trains one run. For several, start a sweep: python train.py -m …"),
        ("seed=range(1,3)", "resume trains one run. For several, start a sweep: python train.py -m …"),
        ("+seed=5", "seed is there already. Write seed=5."),
        ("+optimizer=sgd", "optimizer is chosen already. Write optimizer=sgd."),
        ("~trainer.max_epoch", "trainer has no key max_epoch. Did you mean max_epochs? It has: max_epochs, max_steps."),
        ("~seed=5", "seed is 7. Write ~seed to remove it."),
        ("hydra.run.dir=x", "this is fixed when a run starts."),
        ("model@x=cnn", "this is fixed when a run starts."),
        ("experiment=quick", "a preset changes many keys. To resume with it, write out those that you mean."),
        ("optimizer={lr: 1}", "optimizer takes an option. It has: adamw, sgd."),
        ("bare", "an override reads key=value."),
    ],
)
def test_an_override_that_does_not_fit_a_stored_config_is_one_line(override: str, line: str, conf: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        apply_overrides(stored(), [override], conf)
    assert str(raised.value) == f"{override}: {line}"


def test_keys_are_added_and_removed_as_hydra_does(conf: Path) -> None:
    given = ["+model.width=3", "++model.depth=2", "~model.hidden", "~model.layers.0", "name=run-${seed}"]
    before, after = stored(), apply_overrides(stored(), given, conf)
    assert after["model"] == {
        "_target_": before["model"]["_target_"],
        "gone": before["model"]["gone"],
        "layers": before["model"]["layers"][1:],
        "small": before["model"]["small"],
        "width": 3,
        "depth": 2,
    }
    assert after["name"] == f"run-{before['seed']}"
    assert "model" not in apply_overrides(stored(), ["~model"], conf)


def test_all_faults_of_a_resume_are_reported_together(conf: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        apply_overrides(stored(), ["a=1", "seed=3", "seed=1,2", "model=x"], conf)
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["seed=1,2", "model=x", "a=1"]


def test_importing_overrides_does_not_import_hydra() -> None:
    code = "import sys, savepoint.config; sys.exit(any(m in sys.modules for m in ('hydra', 'omegaconf', 'torch')))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
