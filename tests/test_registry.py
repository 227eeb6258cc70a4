"""What a fork registers in one line is saved, restored, and told apart."""

from pathlib import Path
from typing import Any

import pytest
from tools.workshop import Workshop

from savepoint import checkpoint, register, registry, runs
from savepoint.commands import diff

QUICK = (
    *("tracker=none", "trainer.threads=1", "data.limit_batches=4", "data.batch_size=32", "model=remembering"),
    "trainer.log_every_n_steps=3",
)


class Thing:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def test_what_is_registered_is_given_back_and_collected_in_order() -> None:
    one, other = Thing(), Thing()
    with registry.collecting() as found:
        assert register("b", one) is one and register("a", other) is other
        with registry.collecting() as inner:
            register("b", other)
        assert inner == {"b": other}
    assert list(found.items()) == [("b", one), ("a", other)]


def test_outside_of_a_run_registering_does_nothing() -> None:
    one = Thing()
    assert register("a", one) is one
    with registry.collecting() as found:
        pass
    assert found == {}


def test_an_error_ends_the_collecting() -> None:
    with pytest.raises(KeyError), registry.collecting():
        raise KeyError
    with registry.collecting() as found:
        register("a", Thing())
    assert list(found) == ["a"]


@pytest.mark.parametrize("thing", [5, object(), Thing], ids=["number", "object", "class"])
def test_what_has_no_state_cannot_be_registered(thing: Any) -> None:
    if thing is Thing:
        thing = type("Half", (), {"state_dict": Thing.state_dict})()
    with pytest.raises(ValueError, match="has no state_dict and load_state_dict"):
        register("a", thing)


def test_a_name_is_taken_once() -> None:
    with registry.collecting(), pytest.raises(ValueError, match="the name is taken"):
        register("a", Thing())
        register("a", Thing())


def trained(workshop: Workshop, directory: Path, *more: str) -> runs.Run:
    command = "resume.py" if directory.exists() else "train.py"
    where = f"run={directory}" if directory.exists() else f"hydra.run.dir={directory}"
    ended = workshop.run(command, *(QUICK if command == "train.py" else ()), where, *more)
    assert ended.status == 0, ended.output
    return runs.read(directory)


@pytest.mark.parametrize("registered", [True, False])
def test_a_run_goes_on_to_the_same_bits_if_what_changes_is_registered_and_not_if_it_is_not(
    workshop: Workshop, tmp_path: Path, registered: bool
) -> None:
    own = (f"model.registered={registered}", "trainer.max_steps=11")
    whole = trained(workshop, tmp_path / "whole", *own)
    trained(workshop, tmp_path / "parts", own[0], "trainer.max_steps=3")
    parts = trained(workshop, tmp_path / "parts", "trainer.max_steps=11")
    assert (diff.diff_runs(whole, parts) == []) == registered
    found, _ = checkpoint.latest(parts.checkpoints)
    assert found is not None and list(found.state["registered"]) == ["count"] * registered
    if registered:
        assert found.state["registered"]["count"]["times"] == 11


def test_registered_state_that_the_config_does_not_build_is_refused_by_name(workshop: Workshop, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    trained(workshop, directory, "trainer.max_steps=3")
    faulty = workshop.root / "src" / "project" / "models" / "faulty.py"
    before = faulty.read_text()
    try:
        faulty.write_text(before.replace("register(name, Count())", 'register("other", Count())'))
        ended = workshop.run("resume.py", f"run={directory}", "trainer.max_steps=5")
    finally:
        faulty.write_text(before)
    assert ended.status == 2 and "Traceback" not in ended.output, ended.output
    assert "its registered state is count, and the config registers other." in ended.output
    trained(workshop, directory, "trainer.max_steps=5")
