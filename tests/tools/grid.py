"""The options of conf/, which of them fit together, and few runs in which each pair that fits meets at least once."""

import itertools
import random
from collections.abc import Iterator

from tools import needs
from tools.processes import REPOSITORY

OPTIONS = {
    group: sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))
    for group in ("model", "data", "task", "optimizer", "scheduler", "amp")
}
if not needs.HAS_MUON:
    OPTIONS["optimizer"].remove("muon")
# Which models fit which task, and the data and shapes that they then need.
FITTING = {
    ("classification", "mlp"): ["data=digits"],
    ("classification", "cnn"): ["data=digits"],
    ("classification", "embedding"): ["data=digits"],
    ("regression", "mlp"): ["data=diabetes", "model.in_features=10", "model.out_features=1"],
    ("language_model", "transformer"): ["data=text"],
}
# Those whose groups have rates of their own, and the schedules that set one rate for all.
SEVERAL_RATES, ONE_RATE = ("muon", "sparse_adam"), ("onecycle", "cyclic", "swa")
WHOLE = ("adafactor", "lbfgs", "muon", "rprop")  # need parameters that are not cut
TAKE_SPARSE = ("sparse_adam", "sgd", "adagrad", "lbfgs")

FACTORS: dict[str, list[str]] = {
    "task and model": [f"{task} {model}" for task, model in FITTING],
    "optimizer": OPTIONS["optimizer"],
    "scheduler": OPTIONS["scheduler"],
    "amp": OPTIONS["amp"],
    "data.num_workers": ["0", "1", "2"],
    "trainer.accumulate": ["1", "3"],
    "parallel": ["alone", "2 ranks, ddp", "2 ranks, fsdp"],
}
Pair = frozenset[tuple[str, str]]  # of a factor and its value


def refusals(
    model: str, optimizer: str, scheduler: str, amp: str, clip: float | None, *, parallel: str = "alone"
) -> list[str]:
    """How each line begins that this combination of options is refused with."""
    lines = []
    if parallel.endswith("fsdp") and (optimizer in WHOLE or model == "embedding"):
        return ["trainer.parallel=fsdp: "]
    if optimizer == "sparse_adam" and model != "embedding":
        return ["optimizer: SparseAdam trains sparse gradients, and"]  # nothing is left to be combined
    if optimizer == "lbfgs" and amp == "fp16":
        lines.append("amp.dtype=float16: GradScaler cannot serve LBFGS")
    if optimizer in SEVERAL_RATES and scheduler in ONE_RATE:
        keys = {"onecycle": ["max_lr"], "cyclic": ["max_lr", "base_lr"], "swa": ["swa_lr"]}[scheduler]
        lines += [f"scheduler.{key}=" for key in keys]
    if model == "embedding" and optimizer not in TAKE_SPARSE:
        lines.append("optimizer: ")
    if model == "embedding" and clip is not None:
        lines.append("trainer.clip_grad_norm: torch clips no sparse gradients, and table.weight has them.")
    return lines


def refused(row: dict[str, str]) -> list[str]:
    """The same of a row of FACTORS, or of a part of one: what is not given refuses nothing."""
    model = row.get("task and model", "").rpartition(" ")[2]
    given = (model, row.get("optimizer", "sgd"), row.get("scheduler", "none"), row.get("amp", "none"))
    if not model:  # one that the optimizer takes
        given = ("embedding" if given[1] == "sparse_adam" else "mlp", *given[1:])
    return refusals(*given, None, parallel=row.get("parallel", "alone"))


def pairs() -> Iterator[Pair]:
    """Each value of each factor with each of each other factor."""
    for one, other in itertools.combinations(FACTORS, 2):
        for a, b in itertools.product(FACTORS[one], FACTORS[other]):
            yield frozenset({(one, a), (other, b)})


def rows(seed: int) -> list[dict[str, str]]:
    """Rows that are not refused, in which every pair meets that is not; as few as a greedy choice finds."""
    chance = random.Random(seed)
    left = {pair for pair in pairs() if not refused(dict(pair))}
    found = []
    while left:
        row = dict(sorted(chance.choice(sorted(left, key=sorted))))
        for factor in chance.sample(sorted(FACTORS.keys() - row), len(FACTORS) - 2):
            fitting = [value for value in FACTORS[factor] if not refused(row | {factor: value})]
            chance.shuffle(fitting)
            row[factor] = max(
                fitting, key=lambda value: sum(frozenset({(factor, value), met}) in left for met in row.items())
            )
        left -= {frozenset(met) for met in itertools.combinations(row.items(), 2)}
        found.append(row)
    return found


def table() -> str:
    """What meets what, in Markdown: how many pairs of two factors fit, and how many are refused."""
    names = list(FACTORS)
    lines = [f"| | {' | '.join(f'{name} ({len(FACTORS[name])})' for name in names[1:])} |", "|---" * len(names) + "|"]
    for index, one in enumerate(names[:-1]):
        cells = [_cell(one, other) if names.index(other) > index else "" for other in names[1:]]
        lines.append(f"| {one} ({len(FACTORS[one])}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(one: str, other: str) -> str:
    met = [{one: a, other: b} for a, b in itertools.product(FACTORS[one], FACTORS[other])]
    wrong = sum(bool(refused(row)) for row in met)
    return f"{len(met) - wrong}" + (f", {wrong} refused" if wrong else "")
