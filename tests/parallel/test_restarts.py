"""torchrun starts the ranks again after one of them has died (`--max-restarts`), and they go on with what they trained."""

from pathlib import Path

import pytest
from tools import ranked
from tools.moments import Strike
from tools.workshop import Workshop

from savepoint import checkpoint, runs
from savepoint.commands import diff

SMALL = (
    *("tracker=none", "trainer.threads=1", "model.hidden=[4]", "data.limit_batches=3", "trainer.max_epochs=2"),
    *("checkpoint.every_n_steps=1", "checkpoint.keep_last=9"),
)
SEEDS = (1, 2, 3)
STRIKE = 6 + 5  # the update in which a rank is killed: the second job's fifth


@pytest.fixture(scope="module")
def whole(the_workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing interrupts."""
    directory = tmp_path_factory.mktemp("whole") / "sweep"
    command = ("train.py", "-m", *SMALL, f"seed={','.join(map(str, SEEDS))}", f"hydra.sweep.dir={directory}")
    ended = ranked.run(the_workshop.zygote, directory.parent, 2, *command)
    assert [each.status for each in ended] == [0, 0], ended[0].output
    return directory


@pytest.mark.parametrize("rank", [0, 1])
def test_a_sweep_goes_on_by_itself(rank: int, workshop: Workshop, whole: Path, tmp_path: Path) -> None:
    command = ("train.py", "-m", *SMALL, f"seed={','.join(map(str, SEEDS))}")
    places = ranked.places(2)
    strikes = {rank: Strike(STRIKE, of="step.update")}
    killed = ranked.run(workshop.zygote, tmp_path, 2, *command, environments=places, strikes=strikes)
    assert killed[rank].status == -9 and killed[0].status != 0
    (sweep,) = workshop.root.glob("sweeps/*/*")
    assert not (sweep / "2").exists(), "no job begins that a rank is missing for"
    newest = checkpoint.names(sweep / "1" / "checkpoints")[-1]
    if rank == 1:
        assert "Rank 1 of 2 does not train any more: its process has died" in killed[0].output
        assert runs.read(sweep / "1").record["status"] == "interrupted"

    again = ranked.run(workshop.zygote, tmp_path, 2, *command, environments=ranked.again(places))
    assert [each.status for each in again] == [0, 0], again[0].output
    assert [*workshop.root.glob("sweeps/*/*")] == [sweep]
    assert "finished before" in again[0].output and f"resumed from {newest}" in again[0].output
    assert [len(runs.read(sweep / str(job)).record["commands"]) for job in range(3)] == [1, 2, 1]
    for job in range(3):
        assert diff.diff_runs(*(runs.read(each / str(job)) for each in (whole, sweep))) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_goes_on_by_itself(rank: int, workshop: Workshop, whole: Path, tmp_path: Path) -> None:
    places = ranked.places(2)
    command = ("train.py", *SMALL, "seed=1")
    strikes = {rank: Strike(5, of="step.update")}
    killed = ranked.run(workshop.zygote, tmp_path, 2, *command, environments=places, strikes=strikes)
    assert killed[rank].status == -9 and killed[0].status != 0
    again = ranked.run(workshop.zygote, tmp_path, 2, *command, environments=ranked.again(places))
    assert [each.status for each in again] == [0, 0], again[0].output
    (run,) = runs.all_runs(workshop.root)
    assert diff.diff_runs(runs.read(whole / "0"), run) == []


UNEVEN = """
import os

from project.models.faulty import Raising


class Uneven(Raising):
    def forward(self, inputs):
        self.left += os.environ["RANK"] == "0"
        return super().forward(inputs)
"""


def test_a_job_that_fails_in_one_rank_alone_leaves_the_other_jobs(workshop: Workshop, tmp_path: Path) -> None:
    (workshop.root / "src" / "project" / "models" / "uneven.py").write_text(UNEVEN)
    model = ("model=raising", "model._target_=project.models.uneven.Uneven", "model.at=5,100")
    small = [each for each in SMALL if "hidden" not in each]
    ended = ranked.run(workshop.zygote, tmp_path, 2, "train.py", "-m", *small, *model)
    assert "job 0 failed: Rank 1 of 2 does not train any more: RuntimeError: a bug in the model" in ended[0].output
    (sweep,) = workshop.root.glob("sweeps/*/*")
    assert [runs.read(sweep / str(job)).record["status"] for job in range(2)] == ["failed", "finished"]
