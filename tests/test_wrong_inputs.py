"""The promise that a user's mistake is one line: never a traceback, whichever key of a config is wrong."""

import random
import warnings
from pathlib import Path

import pytest
from tools import wrong_values
from tools.workshop import Workshop

SHARE = 240  # of the cases; `python tests/tools/wrong_values.py` tries all of them


def test_a_wrong_value_is_refused_by_its_key_or_trains() -> None:
    for case in random.Random(0).sample(wrong_values.cases(), SHARE):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about values that it takes all the same
            refused = wrong_values.attempt(case)  # raises what a person would see as a traceback
        if refused is not None:
            assert case.path[0] in refused or "data.dataset" in refused, f"{case}: {refused}"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("~scheduler",), "scheduler: the config needs this group, and has none. Choose one of its options"),
        (("~seed=0",), "seed is not set, and has no default."),
        (("~name",), "~name: name is null already. Leave the override out."),
        (("optimizer.lr=null",), "optimizer.lr=None: must be a number, and is null."),
        (("optimizer.lr='0.1'",), "optimizer.lr='0.1': must be a number, and is text. A variable of the env"),
        (("optimizer.lr=-1",), "optimizer.lr=-1: AdamW: Invalid learning rate: -1"),
        (("model.dropout=x",), "model.dropout='x': must be a number, and is text."),
        (("model.dropout=3",), "model.dropout=3: Mlp: dropout probability has to be between 0 and 1, but got 3"),
        (
            ("scheduler=step", "scheduler.step_size=[1]"),
            "scheduler.step_size=[1]: must be a whole number, and is a list.",
        ),
        (("data.dataset.split_seed=1.5",), "data.dataset.split_seed=1.5: must be a whole number, and is a number with"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_leaves_nothing(
    workshop: Workshop, wrong: tuple[str, ...], told: str
) -> None:
    ended = workshop.run("train.py", "tracker=none", "trainer.threads=1", *wrong)
    assert ended.status == 2 and ended.output.startswith(f"error: {told}"), ended.output
    assert ended.output.count("\n") == 1 and workshop.left() == [], ended.output


def test_a_resume_neither_takes_out_nor_breaks_a_group(workshop: Workshop, directory: Path) -> None:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}
    for wrong, told in (
        ("~scheduler", "scheduler: the config needs this group"),
        ("~data.batch_size=17", "~data.batch_size=17: data.batch_size is 16. Write ~data.batch_size to remove it."),
        ("~seed", "seed"),
        ("~optimizer._target_", "optimizer"),
    ):
        ended = workshop.run("resume.py", f"run={directory}", wrong)
        assert ended.status == 2 and ended.output.startswith(f"error: {told}"), ended.output
        assert ended.output.count("\n") == 1, ended.output
    assert before == {path: path.read_bytes() for path in before}
    config = directory / "config.yaml"
    config.write_text(config.read_text().replace("scheduler:", "schedule:"))
    ended = workshop.run("resume.py", f"run={directory}")
    assert ended.status == 2 and ended.output.startswith("error: scheduler: the config needs this group"), ended.output
