"""What may change on a resume, and what would make another run."""

from typing import Any

import pytest
from tools.processes import REPOSITORY

from savepoint.config import compose
from savepoint.launch import continues


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return compose([], REPOSITORY / "conf")


def test_each_entry_names_a_setting_that_exists_and_gives_a_reason(config: dict[str, Any]) -> None:
    for key, reason in continues.CONTINUES.items():
        node: Any = config
        for part in key.split("."):
            assert part in node, key
            node = node[part]
        assert len(reason) > 10, key


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= leaves(value, f"{path}.{key}".lstrip("."))
        return found
    return {path: node}


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the config with another value at `key`."""
    group, _, rest = key.partition(".")
    if not rest:
        return {**config, group: "another"}
    return {**config, group: changed(config[group], rest)}


def test_every_other_setting_makes_another_run(config: dict[str, Any]) -> None:
    for key in leaves(config):
        listed = key in continues.CONTINUES or key.partition(".")[0] in continues.CONTINUES
        assert continues.other_run(config, changed(config, key)) == ([] if listed else [key])


def test_an_equal_value_of_another_type_is_a_difference() -> None:
    assert continues.other_run({"seed": 1}, {"seed": 1.0}) == ["seed"]
    assert continues.other_run({"seed": 1}, {"seed": True}) == ["seed"]


def test_an_accepted_extension_outlives_the_checkpoint_that_does_not_know_it_yet() -> None:
    trained = {"trainer": {"max_epochs": 20, "accumulate": 1}, "seed": 1}
    own = {"trainer": {"max_epochs": 40, "accumulate": 2}, "seed": 2}
    assert continues.planned(trained, own) == {"trainer": {"max_epochs": 40, "accumulate": 1}, "seed": 1}
    assert trained["trainer"]["max_epochs"] == 20
