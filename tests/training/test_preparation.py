"""A run is built, and its checkpoint restored, before it trains."""

from pathlib import Path
from typing import Any

import torch
from tools.processes import REPOSITORY

from savepoint import checkpoint, runs, training, trust
from savepoint.checkpoint import Checkpoint
from savepoint.config import compose
from savepoint.trackers import NoTracker


def prepared(directory: Path, config: dict[str, Any], loaded: Checkpoint | None) -> training.TrainState:
    settings = trust.check_config(config, source=REPOSITORY / "src")
    run = runs.create(directory, id=runs.new_id(), name=None, config=trust.dump_config(config), overrides=[])
    job = runs.Job(run, config, settings, NoTracker(), REPOSITORY, checkpoint=loaded)
    with training.session(job):
        return training.prepare(job)[0]


def test_memory_does_not_hold_the_checkpoint_while_a_resumed_run_trains(tmp_path: Path) -> None:
    config = compose(["tracker=none", "trainer.device=cpu", "trainer.threads=1"], REPOSITORY / "conf")
    model, tree = training.capture(prepared(tmp_path / "one", config, None))
    documents = {checkpoint.CONFIG: trust.dump_config(config), checkpoint.PROVENANCE: "{}"}
    path = checkpoint.save(tmp_path, model=model, state=tree, documents=documents, metadata={})
    loaded = checkpoint.load(path)
    weights, files = dict(loaded.model), {each.untyped_storage().data_ptr() for each in loaded.model.values()}
    state = prepared(tmp_path / "two", config, loaded)
    assert loaded.model == {} and loaded.state == {}
    for name, each in state.model.state_dict().items():
        assert torch.equal(each, weights[name]) and each.untyped_storage().data_ptr() not in files
