"""Each option with each option of every other group, interrupted at random and resumed: the same bits.

What fits is in few runs in which every pair meets (tests/tools/grid.py); what does not is refused at the start, by name.
"""

import os
import random
from pathlib import Path

import pytest
from tools import draws, grid, needs, ranked
from tools.draws import Trial
from tools.processes import REPOSITORY, Zygote
from tools.trial import Bench

from savepoint import runs

SEED = int(os.environ.get("SAVEPOINT_TEST_SEED", "0"))
ROWS = grid.rows(SEED)
SHARE = 3  # of the rows, in `make test`; `make test-all` runs every one
REFUSED = [dict(sorted(pair)) for pair in grid.pairs() if grid.refused(dict(pair))]


def holds(row: dict[str, str], zygote: Zygote, folder: Path) -> None:
    chance = random.Random(f"{SEED} {sorted(row.items())}")
    trial = Trial(draws.config_of(chance, row), draws.interruptions(chance), ranks=ranks(row))
    folder.mkdir()
    outcome = Bench(trial, zygote, folder).hold()
    told = f"{row}, SAVEPOINT_TEST_SEED={SEED}: python train.py {' '.join(trial.config)}, {trial.interruptions}"
    assert outcome.refused is None, told
    assert outcome.differences == [], told


def ranks(row: dict[str, str]) -> int:
    return 1 if row.get("parallel", "alone") == "alone" else 2


@needs.muon
def test_every_pair_of_options_that_fit_is_in_a_row_and_no_row_is_refused() -> None:
    met = {frozenset({one, other}) for row in ROWS for one in row.items() for other in row.items() if one != other}
    assert met == {pair for pair in grid.pairs() if not grid.refused(dict(pair))}
    assert not any(grid.refused(row) for row in ROWS)
    assert all(row.keys() == grid.FACTORS.keys() for row in ROWS)
    assert len(REFUSED) == 28


def test_a_share_of_the_rows_interrupted_and_resumed_equals_its_uninterrupted_run(
    zygote: Zygote, tmp_path: Path
) -> None:
    for number, row in enumerate(random.Random(SEED).sample(ROWS, SHARE)):
        holds(row, zygote, tmp_path / str(number))


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_every_row_interrupted_and_resumed_equals_its_uninterrupted_run(
    zygote: Zygote, tmp_path: Path, number: int
) -> None:
    holds(ROWS[number], zygote, tmp_path / "row")


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: ", ".join(row.values()))
def test_a_pair_that_does_not_fit_is_refused_at_the_start_by_name(
    zygote: Zygote, tmp_path: Path, row: dict[str, str]
) -> None:
    needed = {"task and model": "classification embedding"} if row.get("optimizer") == "sparse_adam" else {}
    full = (
        {"task and model": "classification mlp", "optimizer": "sgd", "scheduler": "none", "amp": "none"} | needed | row
    )
    chance = random.Random(SEED)
    directory = tmp_path / "run"
    order = (*draws.config_of(chance, full), "tracker=none", f"hydra.run.dir={directory}")
    ended = ranked.run(zygote, tmp_path / "ranks", ranks(full), "train.py", *order)[0]
    assert ended.status == 2
    assert [line for line in ended.output.splitlines() if line.startswith(f"error: {grid.refused(full)[0]}")]
    assert "Traceback" not in ended.output
    assert not (directory / runs.RECORD).exists()


@needs.muon
def test_the_table_in_the_docs_is_that_of_the_grid() -> None:
    text = (REPOSITORY / "docs" / "exactness.md").read_text(encoding="utf-8")
    assert grid.table() in text, f"docs/exactness.md should have:\n{grid.table()}"
