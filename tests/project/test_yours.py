"""What is yours: every option composes, and every experiment trains, and resumes to the same bits.

Presets in conf/experiment/ are found by themselves. A model that is in none of them needs a line in EXPERIMENTS.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from savepoint.testing import REPOSITORY, check_composes, check_resumes

EXPERIMENTS: list[str] = ["model=embedding optimizer=sparse_adam"]  # overrides of train.py
BESIDE = {"data=none": "data.limit_batches=1"}  # options that cannot do without others, and these

CONF = REPOSITORY / "conf"
DEFAULT = [] if "???" in (CONF / "config.yaml").read_text(encoding="utf-8") else [""]
PRESETS = [f"experiment={path.stem}" for path in sorted(CONF.glob("experiment/*.yaml"))]
OPTIONS = [f"{path.parent.name}={path.stem}" for path in sorted(CONF.glob("*/*.yaml"))]


@pytest.mark.parametrize("option", OPTIONS if DEFAULT else PRESETS)
def test_every_option_composes(option: str) -> None:
    check_composes(option, *BESIDE.get(option, "").split())


@pytest.mark.parametrize("experiment", [*DEFAULT, *PRESETS, *EXPERIMENTS])
def test_every_experiment_resumes_to_the_same_bits(experiment: str, tmp_path: Path) -> None:
    check_resumes(*experiment.split(), directory=tmp_path)


def test_every_model_is_in_an_experiment() -> None:
    def target(config: dict[str, Any]) -> str:
        return str(config.get("_target_"))

    trained = {target(check_composes(*each.split())["model"]) for each in [*DEFAULT, *PRESETS, *EXPERIMENTS]}
    models = {path: target(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in CONF.glob("model/*.yaml")}
    missing = [f"model={path.stem}" for path, name in sorted(models.items()) if name not in trained]
    assert not missing, f"in no preset, and not in EXPERIMENTS above: {', '.join(missing)}"
