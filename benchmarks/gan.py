"""The cost of an own update: the GAN of docs/recipes/gan.md, and the same by hand. `python benchmarks/gan.py`

Both train the page's model on the digits, batch size 64, one thread: a step of the discriminator and one of the
generator in each update. The loop by hand has nothing but that, over batches that were cut and shuffled beforehand.
They take turns in every round, and the ratio is the median of the rounds' own ratios. As in benchmarks/step.py, nothing
is evaluated and nothing is saved.
"""

import argparse
import functools
import importlib
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONS = ("experiment=gan", "tracker=none", "trainer.device=cpu", "trainer.threads=1", "trainer.max_epochs=null")


def prepare(root: Path) -> None:
    """Make a repository with the page's files in `root`, whose code is imported from here on."""
    sys.path[:0] = [str(root / "src"), str(REPOSITORY / "tests"), str(REPOSITORY / "benchmarks")]
    for name in ("src", "conf"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("savepoint", "project"):  # before step.py puts this repository's own ones first
        importlib.import_module(name)
    pages: Any = importlib.import_module("tools.pages")
    pages.read(REPOSITORY / "docs" / "recipes" / "gan.md").write(root)


def by_hand(assemble: Any, images: torch.Tensor, steps: int) -> float:
    model = assemble()[0].model.train()
    options: Any = {"lr": 0.001, "betas": (0.5, 0.999)}
    judge = torch.optim.Adam(model.discriminator.parameters(), **options)
    draw = torch.optim.Adam(model.generator.parameters(), **options)
    batches = images[torch.randperm(len(images))].split(64)[:steps]
    begun = time.perf_counter()
    for real in batches:
        fake = model.generator(torch.randn(len(real), model.latent))
        loss = softplus(-model.discriminator(real)).mean() + softplus(model.discriminator(fake.detach())).mean()
        judge.zero_grad()
        loss.backward()
        judge.step()
        model.discriminator.requires_grad_(False)  # or the generator's step would differentiate for it too
        judged = model.discriminator(model.generator(torch.randn(len(real), model.latent)))
        draw.zero_grad()
        binary_cross_entropy_with_logits(judged, torch.ones_like(judged)).backward()
        draw.step()
        model.discriminator.requires_grad_(True)
    return time.perf_counter() - begun


def measure(rounds: int, steps: int) -> dict[str, list[float]]:
    """Microseconds an update, for both and each round."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root)
        step: Any = importlib.import_module("step")
        trust, config = (importlib.import_module(f"savepoint.{each}") for each in ("trust", "config"))
        composed = config.compose([*OPTIONS, f"trainer.max_steps={steps}"], root / "conf")
        settings = trust.check_config(composed, source=root / "src")
        assemble = functools.partial(step.repeated, composed, settings, steps, source=root / "src")
        images = torch.from_numpy(assemble()[1].train.dataset.images).flatten(1)
        timed = {
            "by hand": functools.partial(by_hand, assemble, images, steps),
            "Savepoint": functools.partial(step.savepoint, assemble, root),
        }
        for once in timed.values():
            once()
        turns = [{name: 1e6 * once() / steps for name, once in timed.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in timed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=115, help="updates of each in a round")
    given = parser.parse_args()
    measured = measure(given.rounds, given.steps)
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, one thread")
    print(f"{given.rounds} rounds of {given.steps} updates each")
    print(f"{'':<16} {'µs an update':>12}   {'times by hand':>13}")
    for name, values in measured.items():
        ratio = statistics.median(one / limit for one, limit in zip(values, measured["by hand"], strict=True))
        print(f"{name:<16} {statistics.median(values):>12.0f}   {ratio:>13.2f}")


if __name__ == "__main__":
    main()
