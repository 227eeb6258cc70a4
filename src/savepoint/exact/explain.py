"""Find where two traces differ first, and explain it: the place, the component, the likely causes, what to do."""

import ast
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

GENERATOR = "a generator of random numbers"  # the words of `outside.survey`
SHOWN = 3  # parts of a batch that are named
GENERATORS = "draw from torch, numpy.random or random themselves: the engine seeds all three, and saves them"
BY_INDEX = (
    "draw from torch, numpy.random or random themselves, which the engine seeds for each batch; "
    "or make a generator of a seed and the sample's index: numpy.random.default_rng((seed, index))"
)
REGISTER = 'savepoint.registry.register("name", thing) with an object that has state_dict and load_state_dict'


@dataclass(frozen=True)
class Trace:
    """Everything that one process recorded.

    about: classes and files of the parts, as `watch.about` returns them. records: in the order of computation.
    notes: (file:line, words) for each use of unseeded randomness or of a clock.
    """

    about: dict[str, Any]
    records: list[dict[str, Any]]
    notes: list[tuple[str, str]] = field(default_factory=list)

    def since(self, at: str) -> "Trace":
        """Return the part of the trace that begins with the first recorded state at a place."""
        begin = next(i for i, each in enumerate(self.records) if each["kind"] == "state" and each["at"] == at)
        return Trace(self.about, self.records[begin:], self.notes)

    @property
    def count(self) -> int:
        """The number of recorded values."""
        return sum(len(record["values"]) for record in self.records)


def read(trace: Path, notes: Path) -> Trace:
    """Read the two files that a short run wrote: its records, and its notes of unseeded randomness and clocks."""
    about, *records = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
    return Trace(about, records, [(place, what) for place, _, what in (line.partition("\t") for line in lines)])


@dataclass(frozen=True)
class Difference:
    """The first difference of two traces.

    at: the place in training. kind: the record's. names: the values that differ, in the order of computation.
    index: the record's number. ranks: the ranks that differ there, where several train.
    """

    at: str
    kind: str
    names: list[str]
    index: int
    ranks: tuple[int, ...] = (0,)


def first(a: Trace, b: Trace) -> Difference | None:
    """Return the first difference of two traces, or None if they are equal."""
    for index, (one, other) in enumerate(zip(a.records, b.records)):
        if any(one[key] != other[key] for key in ("at", "kind")) or one["values"].keys() != other["values"].keys():
            return Difference(one["at"], "course", [], index)
        names = [name for name, digest in one["values"].items() if other["values"][name] != digest]
        if names:
            return Difference(one["at"], one["kind"], names, index)
    if len(a.records) != len(b.records):
        index = min(len(a.records), len(b.records))
        return Difference((a.records + b.records)[-1]["at"], "course", [], index)
    return None


def first_of_ranks(a: list[Trace], b: list[Trace]) -> Difference | None:
    """Return the first difference of what the same ranks have recorded twice, in the rank that differs first.

    A difference in one rank reaches the others by the gradient of the same update.
    """
    found = {rank: each for rank, pair in enumerate(zip(a, b)) if (each := first(*pair)) is not None}
    if not found:
        return None
    when = {rank: _when(a[rank], each.index) for rank, each in found.items()}
    ranks = [rank for rank in found if when[rank] == min(when.values())]
    return replace(found[ranks[0]], ranks=tuple(ranks))


def _when(trace: Trace, index: int) -> tuple[int, int]:
    """Count the states before a record, and the records since the last of them: rank 0 may record more than others."""
    states = [number for number, each in enumerate(trace.records[:index]) if each["kind"] == "state"]
    return len(states), index - (states[-1] if states else 0)


def what(found: Difference, about: dict[str, Any]) -> str:
    """Describe a difference in words. Everything that was computed before it is equal."""
    name = found.names[0] if found.names else ""
    more = f" and {len(found.names) - 1} more" if len(found.names) > 1 else ""
    inside = any(other.startswith(f"{name}.") for other in about["classes"])
    return {
        "batch": f"the batch{_part(found.names)}",
        "input": f"{_named(name, about)} is given another input: by {_named(_parent(name), about)}",
        "output": f"{_named(name, about)} gives another output for the same input"
        + (", though each module in it gives the same" if inside else ""),
        "loss": f"{_named('task', about)} gives another {', '.join(found.names)} for the same outputs of the model",
        "gradient": f"the gradient of {name}{more}, though every output and the loss are the same: in the backward "
        f"pass of {_named(_parent(name), about)} or of what comes after it",
        "metrics": f"{_named('task', about)} computes another {', '.join(found.names)} from the same sums",
        "course": "one of the two does something else here than the other",
        "state": _state(name, more, found.at, about),
    }[found.kind]


def _state(name: str, more: str, at: str, about: dict[str, Any]) -> str:
    if name.startswith("rng."):
        return f"the generator of {name.removeprefix('rng.')}: something drew from it another number of times"
    when = "at the start" if at == "the start" else "though its gradients are the same"
    if name.startswith("model."):
        return f"{name}{more}, {when}"
    return f"{name}{more}"


def _part(names: list[str]) -> str:
    parts = [name.removeprefix("batch") for name in names if name != "batch"]
    return f" (its {', '.join(parts[:SHOWN])})" if parts else ""


def _parent(name: str) -> str:
    return name.rpartition(".")[0] or "task"


def _named(name: str, about: dict[str, Any]) -> str:
    class_of = about["classes"].get(name.replace("average", "model", 1))
    return f"{name} ({class_of[0]})" if class_of else name


def responsible(found: Difference, about: dict[str, Any]) -> tuple[str, str]:
    """Return the component responsible for a difference: its name prefix and the module of its class."""
    name = found.names[0] if found.names else "model"
    owner = {
        "batch": "data.val" if found.at.startswith("validation") else "data.train",
        "input": _parent(name),
        "output": name,
        "loss": "task",
        "metrics": "task",
        "gradient": _parent(name),
        "course": "model",
    }.get(found.kind) or _owner_of_state(name, found)
    owner = owner.replace("average", "model", 1)
    return owner, about["classes"].get("data" if owner.startswith("data") else owner, ["", ""])[1]


def _owner_of_state(name: str, found: Difference) -> str:
    if name.startswith("model."):
        return "model" if found.at == "the start" else "optimizer"
    if name.startswith("optimizers."):
        return ".".join(name.split(".")[:3]).partition("[")[0]
    return name.partition(".")[0].partition("[")[0] if name.startswith(("optimizer", "scheduler")) else "model"


def suspects(a: Trace, b: Trace, found: Difference, *, here: str, there: str) -> list[tuple[str, str]]:
    """List values outside the saved state that differ at the earliest point, at the latest where the traces differ.

    If some of them belong to the responsible component, only those are listed.
    here, there: what the words call the two traces. Returns: name and words of each value.
    """
    for one, other in list(zip(a.records, b.records))[: found.index + 1]:
        left, right = one.get("outside"), other.get("outside")
        if left is None or right is None:
            continue
        names = [name for name in left.keys() | right.keys() if left.get(name, [None])[0] != right.get(name, [None])[0]]
        names = [name for name in names if not any(_within(name, outer) for outer in names if outer != name)]
        if names:
            ranks = {name: _rank(name, responsible(found, a.about), a.about) for name in names}
            best = [name for name in names if ranks[name] == min(ranks.values())]
            best.sort(key=lambda name: (name.rpartition(".")[2].startswith("_"), name))
            return [(name, _two(left.get(name), right.get(name), here, there)) for name in best]
    return []


def _within(name: str, outer: str) -> bool:
    return name.startswith(outer) and name[len(outer) :][:1] in (".", "[", "{", "'")


def _rank(name: str, owner: tuple[str, str], about: dict[str, Any]) -> int:
    """Rank how likely a value caused what the owner did, from 0, the likeliest, to 3."""
    path, module = owner
    if _within(name, path):
        return 0
    if module and name.startswith(f"{module}."):
        return 1
    of_torch = about["classes"].get(name.partition(".")[0], ["", ""])[1].startswith("torch")
    unlike = (name.startswith("data.") and path.startswith("data.")) or of_torch
    return 3 if unlike else 2


def _two(left: list[str] | None, right: list[str] | None, here: str, there: str) -> str:
    one, other = (each[1] if each else "absent" for each in (left, right))
    return f"{one} {here}, {other} {there}" if one != other else f"{one}, not the same {here} as {there}"


def noted(a: Trace, b: Trace, found: Difference) -> list[tuple[str, str]]:
    """Return the notes on unseeded generators and clocks of the responsible module; all notes if it has none."""
    module = responsible(found, a.about)[1]
    file = a.about["files"].get(module, "")
    notes = sorted(dict.fromkeys([*a.notes, *b.notes]), key=lambda note: ("the clock" in note[1], note[0]))
    own = [note for note in notes if note[0].rpartition(":")[0] == file]
    return own or notes


def hashes(about: dict[str, Any], owner: tuple[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Find where the project's source depends on addresses or on Python's hash seed: hash(), id(), the order of a set.

    Returns: the lines in the responsible class, and the lines in all files.
    """
    name = about["classes"].get("data" if owner[0].startswith("data") else owner[0], [""])[0]
    every, own = [], []
    for path in dict.fromkeys(about["files"].values()):
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
        every += _hashes(tree, path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == name and path == about["files"].get(owner[1]):
                own += _hashes(node, path)
    return own, every


_HASHES = {"hash": "calls hash()", "id": "calls id()", "set": "makes a set", "frozenset": "makes a set"}


def _hashes(tree: ast.AST, path: str) -> list[tuple[str, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Set | ast.SetComp):
            found.append((f"{path}:{node.lineno}", "makes a set"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _HASHES:
            found.append((f"{path}:{node.lineno}", _HASHES[node.func.id]))
    return found


def advice(name: str, words: str, found: Difference) -> str:
    """Return what to do about a value outside the saved state. words: what `suspects` says about it."""
    if GENERATOR in words:
        return remedy(found)
    if name.startswith("model"):
        return f'make it state: self.register_buffer("name", tensor) without persistent=False, or {REGISTER}'
    if name.startswith("data"):
        return "let a sample depend on its index alone, and on random numbers; what must change in training is state: "\
            f"{REGISTER}"  # fmt: skip
    if name.startswith("optimizer"):
        return "keep it in the optimizer's state[parameter] or in its param_groups, which are saved"
    if name.startswith("scheduler"):
        return "let the scheduler's state_dict hold it, and load_state_dict take it back"
    return f"make it an attribute of what uses it, and state: {REGISTER}"


def remedy(found: Difference) -> str:
    """Return what to do about an unseeded generator."""
    return BY_INDEX if found.kind == "batch" else GENERATORS
