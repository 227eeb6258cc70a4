"""Random configs, interrupted at random and resumed, for as long as asked: each must equal the run that nothing stopped.

    python tests/tools/chaos.py --minutes 30              another seed each time, which it prints
    python tests/tools/chaos.py --seed 7 --trial 123      one trial again; only kills by the clock may come elsewhere

Exit code: 0 if nothing differs, 1 if something does. What differs is kept, and where is said.
"""

import argparse
import collections
import contextlib
import os
import random
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from tools import draws, pages  # noqa: E402
from tools.draws import Trial  # noqa: E402
from tools.grid import OPTIONS  # noqa: E402
from tools.processes import Zygote  # noqa: E402
from tools.trial import Bench, Outcome  # noqa: E402
from tools.workshop import copy_repository  # noqa: E402

REPOSITORY = "repository"  # a copy of this one, with the files of the recipes


@dataclass
class Tally:
    """What was tried, over all threads. ranked: share of the trials with several ranks. stopped: by Ctrl-C, which reaches every process of the trials as well."""

    seed: int
    ranked: float = 0.15
    stopped: bool = False
    started: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    next: int = 1
    trials: int = 0
    fresh: int = 0
    several: int = 0
    in_parts: int = 0
    lost: int = 0
    refused: int = 0
    different: list[int] = field(default_factory=list)
    struck: collections.Counter[str] = field(default_factory=collections.Counter)
    within: collections.Counter[str] = field(default_factory=collections.Counter)
    options: collections.Counter[str] = field(default_factory=collections.Counter)
    configs: set[frozenset[str]] = field(default_factory=set)

    def number(self) -> int:
        with self.lock:
            self.next += 1
            return self.next - 1

    def note(self, number: int, trial: Trial, outcome: Outcome) -> None:
        with self.lock:
            if outcome.refused:
                self.refused += 1
                return
            self.trials += 1
            self.fresh += trial.fresh
            self.several += trial.ranks > 1
            self.in_parts += trial.in_parts
            self.lost += len(outcome.struck) * (trial.ranks > 1)
            self.struck.update(outcome.struck)
            self.within.update(outcome.within)
            self.options.update(trial.config)
            self.configs.add(frozenset(each for each in trial.config if not each.startswith("seed=")))
            if outcome.differences:
                self.different.append(number)


PAGES = [pages.read(path) for path in sorted((ROOT / "docs" / "recipes").glob("*.md"))]


def attempt(tally: Tally, number: int, zygote: Zygote, root: Path) -> Outcome:
    recipes = [tuple(pages.placed(line, root / REPOSITORY)) for page in PAGES for line in page.trainings]
    trial = draws.trial(random.Random(f"{tally.seed} {number}"), recipes, ranked=tally.ranked)
    folder = root / str(number)
    folder.mkdir()
    outcome = Bench(trial, zygote, folder).hold()
    if outcome.refused and draws.FSDP in outcome.refused:
        trial = replace(trial, config=tuple(draws.DDP if each == draws.FSDP else each for each in trial.config))
        shutil.rmtree(folder)
        folder.mkdir()
        outcome = Bench(trial, zygote, folder).hold()
    if outcome.differences:
        time.sleep(0.5)  # a Ctrl-C that ended them may not have reached the main thread yet
    if tally.stopped:
        return outcome
    tally.note(number, trial, outcome)
    if outcome.differences:
        told = "\n".join(f"    {line}" for each in outcome.differences[:10] for line in each.splitlines()[-30:])
        with tally.lock:
            print(f"\ntrial {number} DIFFERS, kept in {folder}\n  python train.py {' '.join(trial.config)}")
            print(
                "\n".join(f"  {each}" for each in trial.interruptions),
                f"\n{told}\n  again: {again(tally.seed, tally.ranked, number)}",
            )
    else:
        shutil.rmtree(folder)
    return outcome


def again(seed: int, ranked: float, number: int) -> str:
    return f"python tests/tools/chaos.py --seed {seed} --ranked {ranked:g} --trial {number}"


def work(tally: Tally, root: Path, name: str, numbers: Iterator[int]) -> None:
    folder = root / name
    folder.mkdir()
    zygote = Zygote(folder, root / REPOSITORY)
    try:
        for number in numbers:
            attempt(tally, number, zygote, root)
    except BaseException:
        if not tally.stopped:
            raise
    finally:
        with contextlib.suppress(OSError):  # it is gone, if by Ctrl-C
            zygote.close()


def prepare(root: Path) -> None:
    """Train the runs whose weights recipes begin from."""
    folder = root / "sources"
    folder.mkdir()
    zygote = Zygote(folder, root / REPOSITORY)
    for line in (line for page in PAGES for line in page.sources):
        short = ("tracker=none", "trainer.threads=1", "trainer.max_epochs=2")
        ended = zygote.run("train.py", *pages.placed(line, root / REPOSITORY), *short)
        assert ended.status == 0, ended.output
    zygote.close()


def numbers(tally: Tally, minutes: float) -> Iterator[int]:
    """Of the trials that one thread does, until the time is up."""
    while not tally.stopped and time.monotonic() - tally.started < 60 * minutes:
        yield tally.number()


def table(tally: Tally) -> str:
    """In Markdown: how often each option of a group, and each way to interrupt, took part in a trial."""
    lines = ["| what | covered: times |", "|---|---|"]
    groups = {group: f"{group}=" for group in OPTIONS}
    groups |= {"experiment": "experiment=", "debug": "debug="}
    settings = (
        *("data.num_workers=", "trainer.accumulate=", "trainer.ema_decay=", "trainer.clip_grad_norm="),
        *("trainer.parallel=", "fsdp.param_dtype=", "fsdp.reduce_dtype="),
    )
    for group, start in groups.items() | {key.rstrip("="): key for key in settings}.items():
        found = sorted((each.removeprefix(start), n) for each, n in tally.options.items() if each.startswith(start))
        lines.append(f"| {group} | {', '.join(f'{option}: {n}' for option, n in found)} |")
    lines.append(f"| interrupted by | {', '.join(f'{how}: {n}' for how, n in sorted(tally.struck.items()))} |")
    lines.append(f"| interrupted within | {', '.join(f'{name}: {n}' for name, n in tally.within.most_common())} |")
    return "\n".join([*lines[:2], *sorted(lines[2:])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--ranked", type=float, default=0.15, help="share of the trials with 2 or 3 ranks")
    parser.add_argument("--trial", type=int, default=None, help="only this one")
    given = parser.parse_args()
    tally = Tally(secrets.randbelow(2**32) if given.seed is None else given.seed, given.ranked)
    root = Path(tempfile.mkdtemp(prefix="savepoint-chaos-"))
    (root / REPOSITORY).mkdir()
    copy_repository(root / REPOSITORY)
    for page in PAGES:
        page.write(root / REPOSITORY)
    prepare(root)
    if given.trial is not None:
        work(tally, root, "outputs", iter([given.trial]))
    else:
        print(f"chaos: seed {tally.seed}, {given.minutes:g} minutes", flush=True)
        threads = [
            threading.Thread(target=work, args=(tally, root, f"outputs-{index}", numbers(tally, given.minutes)))
            for index in range(min(4, os.cpu_count() or 1))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            tally.stopped = True
            for thread in threads:
                thread.join()
    print(table(tally))
    print(
        f"\nseed {tally.seed}: {tally.trials} trials of {len(tally.configs)} configs, {tally.struck.total()} interruptions,"
        f" {tally.fresh} trials in fresh interpreters, {tally.several} with several ranks, {tally.in_parts} of them "
        f"with FSDP, and {tally.lost} interruptions of them; {tally.refused} configs refused at their start by name; "
        f"{len(tally.different)} differences in {time.monotonic() - tally.started:.0f} s.\n"
        f"one again: {again(tally.seed, tally.ranked, tally.different[0] if tally.different else 1)}"
    )
    if not tally.different:
        shutil.rmtree(root)
    return 1 if tally.different else 0


if __name__ == "__main__":
    sys.exit(main())
