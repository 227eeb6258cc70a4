"""Whether a resumed run ends in the same weights: Savepoint and three others. `python benchmarks/rivals.py`

Every library trains the same model (conf/model/mlp.yaml, with dropout) on the same digits, shuffled, with AdamW and a
cosine schedule, one thread: twice without an interruption, and once killed a few updates after a checkpoint and resumed
in a new process, as its own documentation says. Once the checkpoint is in the middle of an epoch, once at its end.
Printed is the largest difference of a weight to the first run. 0 is expected of the second run, which shows that
nothing but the interruption makes a difference.

The rivals are not among this repository's dependencies. In an environment of its own, since pip may change versions
(torch 2.13.0 has been tried; torchdata has the loader that Lightning and Accelerate call stateful):

    python -m venv rivals
    rivals/bin/python -m pip install --editable . lightning accelerate torchdata
    rivals/bin/python benchmarks/rivals.py

Composer 0.32.1 asks for an older torch, so its rows have an environment of their own:

    python -m venv composer
    composer/bin/python -m pip install mosaicml scikit-learn safetensors
    composer/bin/python benchmarks/rivals.py --only Composer
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

REPOSITORY = Path(__file__).resolve().parents[1]
KILLED = 9  # the exit code of a part that ends itself in the middle of training
AFTER = 3  # updates from the checkpoint to the end of the process: they are lost
EPOCHS = 6
LR = 0.005

Part = Literal["whole", "killed", "resumed"]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One training. saved: the update after which its checkpoint is taken. batches: those of an epoch."""

    saved: int
    batches: int = 23  # of 64 samples; the training split has 1,437
    epochs: int = EPOCHS

    @property
    def updates(self) -> int:
        return self.epochs * self.batches

    @property
    def ends_epoch(self) -> bool:
        return self.saved % self.batches == 0


def images_and_targets() -> TensorDataset:
    """Return the training split of conf/data/digits.yaml."""
    from project.data.digits import Digits

    digits = Digits("train")
    return TensorDataset(torch.from_numpy(digits.images), torch.from_numpy(digits.targets))


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    from project.models.mlp import Mlp

    model = Mlp()
    return model, torch.optim.AdamW(model.parameters(), lr=LR)


def lightning(part: Part, folder: Path, case: Case, *, stateful: bool) -> tuple[nn.Module, int]:
    """Train with Lightning's Trainer. Returns: the model, and how often the optimizer stepped.

    Source: the pages "Saving and loading checkpoints": ModelCheckpoint, and `fit(…, ckpt_path=…)`. A loader that has
    a state_dict, as the warning of a resume in the middle of an epoch asks for, is torchdata's.
    """
    import lightning as pl
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    class Digits(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = model_and_optimizer()

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, case.updates)
            return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Kill(Callback):
        def on_train_batch_end(self, trainer: Any, *_: object) -> None:
            if part == "killed" and trainer.global_step == case.saved + AFTER:
                os._exit(KILLED)

    cadence = {"every_n_epochs": 1} if case.ends_epoch else {"every_n_train_steps": case.saved}
    save = ModelCheckpoint(dirpath=folder, filename="{step}", auto_insert_metric_name=False, save_top_k=-1, **cadence)
    pl.seed_everything(0, workers=True, verbose=False)
    module = Digits()
    loader = _loader_class(stateful)(images_and_targets(), batch_size=64, shuffle=True)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=case.epochs, deterministic=True, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[save, Kill()],
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=folder / f"{case.saved}.ckpt" if part == "resumed" else None)
    return module.model, trainer.global_step


def accelerate(
    part: Part, folder: Path, case: Case, *, stateful: bool = False, seedable: bool = False
) -> tuple[nn.Module, int]:
    """Train with a loop around Accelerate. Returns: the model, and how often the optimizer stepped.

    Source: examples/by_feature/checkpointing.py of its repository, and the page "Checkpointing": save_state,
    load_state, and then skip_first_batches or a stateful loader. seedable: use_seedable_sampler, which is to give each
    epoch its own reproducible order.
    """
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed

    loading = DataLoaderConfiguration(use_stateful_dataloader=stateful, use_seedable_sampler=seedable)
    accelerator = Accelerator(cpu=True, dataloader_config=loading)
    set_seed(0)
    model, optimizer = model_and_optimizer()
    loader: Any = DataLoader(images_and_targets(), batch_size=64, shuffle=True)
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, case.updates)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    updates = first = skipped = 0
    if part == "resumed":
        accelerator.load_state(str(folder / f"step_{case.saved}"))
        first, skipped = divmod(case.saved, case.batches)
        updates = case.saved

    for epoch in range(first, case.epochs):
        model.train()
        active = loader
        if epoch == first and skipped and not stateful:
            active = accelerator.skip_first_batches(loader, skipped)
        for images, targets in active:
            accelerator.backward(nn.functional.cross_entropy(model(images), targets))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            updates += 1
            if updates == case.saved and not case.ends_epoch:
                accelerator.save_state(str(folder / f"step_{updates}"))
            if part == "killed" and updates == case.saved + AFTER:
                os._exit(KILLED)
        if updates == case.saved and case.ends_epoch:
            accelerator.save_state(str(folder / f"step_{updates}"))
    return accelerator.unwrap_model(model), updates


def composer(part: Part, folder: Path, case: Case, *, sampler: bool) -> tuple[nn.Module, int]:
    """Train with Composer's Trainer. Returns: the model, and how often the optimizer stepped.

    Source: docs/source/trainer/checkpointing.rst of its repository: save_folder, save_interval and load_path. sampler:
    composer.utils.dist.get_sampler, whose order depends on its own seed and the epoch, in place of shuffle=True.
    """
    from composer import Callback, Trainer
    from composer.models import ComposerModel
    from composer.utils import dist, reproducibility

    class Digits(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = model_and_optimizer()

        def forward(self, batch: list[Tensor]) -> Tensor:
            return self.model(batch[0])

        def loss(self, outputs: Tensor, batch: list[Tensor]) -> Tensor:
            return nn.functional.cross_entropy(outputs, batch[1])

    class Kill(Callback):
        def batch_end(self, state: Any, *_: object) -> None:
            if part == "killed" and state.timestamp.batch.value == case.saved + AFTER:
                os._exit(KILLED)

    reproducibility.seed_all(0)
    digits, data = Digits(), images_and_targets()
    order: Any = {"sampler": dist.get_sampler(data, shuffle=True)} if sampler else {"shuffle": True}
    trainer = Trainer(
        model=digits, train_dataloader=DataLoader(data, batch_size=64, **order), optimizers=digits.optimizer,
        schedulers=torch.optim.lr_scheduler.CosineAnnealingLR(digits.optimizer, case.updates),
        step_schedulers_every_batch=True, max_duration=f"{case.epochs}ep", seed=0, device="cpu", progress_bar=False,
        save_folder=str(folder), save_filename="{batch}.pt", save_latest_filename=None, callbacks=[Kill()],
        save_interval="1ep" if case.ends_epoch else f"{case.saved}ba", save_overwrite=True,
        load_path=str(folder / f"{case.saved}.pt") if part == "resumed" else None,
    )  # fmt: skip
    trainer.fit()
    return digits.model, trainer.state.timestamp.batch.value


def _loader_class(stateful: bool) -> Any:
    if not stateful:
        return DataLoader
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader


# Each way to resume, by the name in the table: the package, the function and its options.
WAYS: dict[str, tuple[str, Callable[..., tuple[nn.Module, int]], dict[str, bool]]] = {
    "Lightning, DataLoader": ("lightning", lightning, {"stateful": False}),
    "Lightning, StatefulDataLoader": ("lightning", lightning, {"stateful": True}),
    "Accelerate, skip_first_batches": ("accelerate", accelerate, {}),
    "Accelerate, the same and use_seedable_sampler": ("accelerate", accelerate, {"seedable": True}),
    "Accelerate, use_stateful_dataloader": ("accelerate", accelerate, {"stateful": True}),
    "Composer, DataLoader": ("composer", composer, {"sampler": False}),
    "Composer, dist.get_sampler": ("composer", composer, {"sampler": True}),
}


def play(way: str, part: Part, folder: Path, case: Case) -> None:
    """Train one part of a rival's case in this process, and write its weights below `folder`."""
    sys.path.insert(0, str(REPOSITORY / "src"))
    torch.set_num_threads(1)
    _, train, options = WAYS[way]
    model, updates = train(part, folder, case, **options)
    save_file(dict(model.state_dict()), folder / f"{part}.safetensors", metadata={"updates": str(updates)})


def rival(way: str, case: Case, folder: Path) -> tuple[float, float]:
    """Return what `compare` says of a rival. Raises: RuntimeError with its output if a part fails."""
    ends: list[Weights] = []
    for number, parts in enumerate((("whole",), ("whole",), ("killed", "resumed"))):
        place = folder / str(number)
        place.mkdir(parents=True)
        for part in parts:
            order = json.dumps([way, part, str(place), case.saved, case.batches, case.epochs])
            run(str(Path(__file__)), "--play", order, status=KILLED if part == "killed" else 0)
        path = place / f"{parts[-1]}.safetensors"
        with safe_open(path, framework="pt") as file:
            took = int(file.metadata()["updates"])
        if took != case.updates:
            raise RuntimeError(f"{way}: {took} updates in all, and not {case.updates}")
        ends.append(load_file(path))
    return compare(*ends)


def savepoint(case: Case, folder: Path, execute: Callable[..., None], *overrides: str) -> tuple[float, float]:
    """Return what `compare` says of train.py and resume.py, as a person calls them.

    execute: called with a script, its arguments, and with strike= for the run that is killed (tests/tools/moments.py).
    It raises if the script does not end as it should.
    """
    # Synchronous, or whether the checkpoint is there at the kill would depend on the disk.
    cadence = (
        f"checkpoint.every_n_steps={case.saved}",
        "checkpoint.every_n_epochs=null",
        "checkpoint.async_save=false",
    )
    if case.ends_epoch:
        cadence = (f"checkpoint.every_n_epochs={case.saved // case.batches}", *cadence[2:])
    common = (f"optimizer.lr={LR}", "scheduler=cosine", f"trainer.max_epochs={case.epochs}", *cadence)
    start = ("train.py", *common, "tracker=none", "trainer.device=cpu", "trainer.threads=1", *overrides)
    ends: list[Weights] = []
    for name in ("first", "second", "killed"):
        directory = folder / name
        strike = {"at": case.saved + AFTER, "of": "step.update"} if name == "killed" else None
        execute(*start, f"hydra.run.dir={directory}", strike=strike)
        if strike:
            _expect(directory, case.saved)
            execute("resume.py", f"run={directory}")
        ends.append(load_file(_expect(directory, case.updates) / "model.safetensors"))
    return compare(*ends)


def _expect(directory: Path, updates: int) -> Path:
    """Return a run's newest checkpoint. Raises: RuntimeError if that is not the one after so many updates."""
    newest = max((directory / "checkpoints").glob("epoch_*"))
    if not newest.name.endswith(f"_{updates:08}"):
        raise RuntimeError(f"{newest} is the newest checkpoint, and not one of update {updates}")
    return newest


def compare(first: Weights, second: Weights, resumed: Weights) -> tuple[float, float]:
    """Return the largest differences of a weight: second to first, and resumed to first."""
    again, after = (max((one[name] - first[name]).abs().max().item() for name in first) for one in (second, resumed))
    return again, after


def run(*command: str, status: int = 0) -> None:
    """Run a program to its end. Raises: RuntimeError with its output if it does not end with `status`."""
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != status:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}, and not {status}:\n{done.stdout}")


def run_script(script: str, *arguments: str, strike: dict[str, Any] | None = None) -> None:
    """Run train.py or resume.py. strike: when it is killed; see tests/tools/moments.py."""
    if strike is None:
        run(str(REPOSITORY / script), *arguments)
    else:
        moments = str(REPOSITORY / "tests" / "tools" / "moments.py")
        run(moments, json.dumps(strike), str(REPOSITORY / script), *arguments, status=-KILLED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the rows whose name begins so")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.play:
        way, part, folder, *numbers = json.loads(given.play)
        play(way, part, Path(folder), Case(*numbers))
        return
    known = ("torch", "lightning", "accelerate", "torchdata", "composer")
    packages = [name for name in known if importlib.util.find_spec(name)]
    distributions = {"composer": "mosaicml"}  # on PyPI
    print(
        ", ".join(f"{name} {importlib.metadata.version(distributions.get(name, name))}" for name in packages), end=", "
    )
    print(f"Python {platform.python_version()}, {platform.machine()}, one thread")
    print("the largest difference of a weight to an uninterrupted run")
    print(f"{'':<46}{'the same again':>16}{'in mid-epoch':>16}{'at its end':>16}")
    for way in ("Savepoint", *WAYS):
        if (way != "Savepoint" and WAYS[way][0] not in packages) or not way.startswith(given.only):
            continue
        differences = []
        for case in (Case(saved=57), Case(saved=46)):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                differences.append(
                    savepoint(case, place, run_script) if way == "Savepoint" else rival(way, case, place)
                )
        cells = (max(again for again, _ in differences), *(after for _, after in differences))
        print(f"{way:<46}" + "".join(f"{cell:>16.3g}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
