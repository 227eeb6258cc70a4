"""Single wrong values: each leaf of an open group of some configs, and each value that it may be given by mistake.

`python tests/tools/wrong_values.py` tries all of them and lists those that end in an exception of another kind than a
UserError: what a person would see as a traceback.
"""

import copy
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402

from savepoint import trust  # noqa: E402
from savepoint.config import resolve  # noqa: E402
from savepoint.errors import UserError  # noqa: E402
from savepoint.system.signals import Stop  # noqa: E402
from savepoint.training import build, evaluation, step  # noqa: E402
from tools import needs  # noqa: E402

OPEN = ("model", "data.dataset", "data.sampler", "task", "optimizer", "scheduler")
VALUES: tuple[Any, ...] = (None, "x", -1, [1], {"a": 1}, 1e30, True, 0, 1.5)
SMALL = ("data.limit_batches=2", "data.batch_size=4", "trainer.max_epochs=1", "tracker=none")
CONFIGS = {
    "step": ("scheduler=step",),
    "cnn": ("model=cnn", "optimizer=sgd", "scheduler=onecycle"),
    "regression": ("experiment=diabetes", "optimizer=adafactor", "scheduler=cosine_warm_restarts"),
    "text": (
        "experiment=characters",
        "model.width=8",
        f"optimizer={'muon' if needs.HAS_MUON else 'adamw'}",
        "scheduler=chained",
    ),
    "sparse": (
        *("model=embedding", "optimizer=sparse_adam", "scheduler=sequential"),
        "data.sampler={_target_: project.data.balanced.Balanced, samples: null}",
    ),
    "cyclic": ("optimizer=rmsprop", "scheduler=cyclic"),
    "lambda": ("optimizer=rprop", "scheduler=lambda"),
    "plateau": ("optimizer=lbfgs", "scheduler=plateau"),
    "polynomial": ("optimizer=asgd", "scheduler=polynomial"),
    "swa": ("optimizer=nadam", "scheduler=swa"),
    "multistep": ("optimizer=adagrad", "scheduler=multistep"),
}


@dataclass(frozen=True)
class Case:
    """One value of one key of one of CONFIGS."""

    config: str
    path: tuple[str | int, ...]
    value: Any

    def __str__(self) -> str:
        return f"{self.config}: {'.'.join(map(str, self.path))}={self.value!r}"


@functools.cache
def composed(name: str) -> dict[str, Any]:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return resolve(compose("config", [*CONFIGS[name], *SMALL]))


def cases(names: tuple[str, ...] = tuple(CONFIGS)) -> list[Case]:
    return [
        Case(name, (*group.split("."), *path), value)
        for name in names
        for group in OPEN
        for path in _leaves(functools.reduce(lambda node, key: node[key], group.split("."), composed(name)))
        for value in VALUES
    ]


def _leaves(node: Any) -> Iterator[tuple[str | int, ...]]:
    """The paths to all values, to lists of values as a whole."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from ((key, *rest) for rest in _leaves(value))
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for index, value in enumerate(node):
            yield from ((index, *rest) for rest in _leaves(value))
    else:
        yield ()


def attempt(case: Case) -> str | None:
    """Build what the case describes, train two steps and evaluate. Returns: why it was refused, None if it was not.

    Raises: whatever a person would see as a traceback.
    """
    config = copy.deepcopy(composed(case.config))
    *parents, key = case.path
    functools.reduce(lambda node, parent: node[parent], parents, config)[key] = case.value
    source = REPOSITORY / "src"
    try:
        settings = trust.check_config(config, source=source)
        state, parts = build.assemble(config, settings, source=source)
    except UserError as error:
        return str(error)
    state.model.train()
    for batch in parts.train.epoch(0):
        step.update(state, parts, [batch])
        if settings.schedule("").interval == "step":
            state.optimizers[""].scheduler.step()
    measured = evaluation.evaluate(state, parts, Stop())
    if settings.schedule("").interval == "epoch":
        state.optimizers[""].scheduler.step(*([measured["loss"]] if settings.schedule("").monitor and measured else []))
    return None


def main() -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: Counter[str] = Counter()
    for case in cases():
        try:
            refused = attempt(case)
        except Exception as error:  # what a person would see as a traceback
            results["traceback"] += 1
            print(f"TRACEBACK {case}: {type(error).__name__}: {' '.join(str(error).split())[:150]}", flush=True)
        else:
            results["refused" if refused else "trained"] += 1
            if refused and "-v" in sys.argv:
                print(f"refused {case}: {refused[:240]}", flush=True)
    print(dict(results))
    return 1 if results["traceback"] else 0


if __name__ == "__main__":
    sys.exit(main())
