"""Find what a query names: a run's checkpoint, or safetensors files. This reads names and an index, and no weights."""

from pathlib import Path

from savepoint import runs, trust
from savepoint.config import TrackerSettings
from savepoint.errors import UserError, short_list

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
# A run's checkpoint, or a path: a file, a directory of files, or a checkpoint that was copied out of its run.
Source = runs.Found | Path
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_INDEX = 100_000_000  # bytes


def find(
    query: str, repository: Path, *, tracker: TrackerSettings | None = None, apart_from: str | None = None
) -> Source:
    """Find the weights that a query names.

    query: a run as people write it (see `runs.find`), a checkpoint directory, a `.safetensors` file, or a directory of
    one such file, or of several with an index, as on the Hugging Face hub.
    tracker, apart_from: see `runs.find`.
    Raises: UserError if there is nothing of that name, or only files that can run code.
    """
    path = Path(query)
    if path.suffix == SUFFIX or path.is_file():
        _check_file(path, query)
        return path.absolute()
    if path.is_dir() and _is_no_run(path, query):
        return path.absolute()
    return runs.find(query, repository, tracker=tracker, apart_from=apart_from)


def _check_file(path: Path, query: str) -> None:
    if path.suffix in _PICKLES:
        raise UserError(f"{query}: {_pickles('it')}")
    if not path.is_file():
        raise UserError(f"{query}: there is no such file.")
    if path.suffix != SUFFIX:
        raise UserError(f"{query}: weights are read from {SUFFIX} files, and this is none.")


def _is_no_run(path: Path, query: str) -> bool:
    """Whether a directory holds weights outside of any run. Raises: UserError if all that it holds are pickles."""
    if (path / runs.RECORD).exists():
        return False
    if (path / "manifest.json").exists():  # a checkpoint, perhaps copied out of its run
        return not (path.resolve().parent.parent / runs.RECORD).exists()
    names = [each.name for each in path.iterdir()]
    if any(name.endswith((SUFFIX, INDEX)) for name in names):
        return True
    if any(name.endswith(_PICKLES) for name in names):
        raise UserError(f"{query}: {_pickles('a file in it')}")
    return False


def files(path: Path) -> dict[str, set[str] | None]:
    """Return the weight files of a path, each with the tensors that the index says it holds; None without an index.

    path: a file or a directory.
    Raises: UserError if the directory has several files and not one index, or if its index is malformed.
    """
    if path.is_file():
        return {path.name: None}
    indexes = sorted(each.name for each in path.glob(f"*{INDEX}"))
    names = sorted(each.name for each in path.glob(f"*{SUFFIX}"))
    if len(indexes) == 1:
        return _indexed(path / indexes[0])
    if len(names) == 1 and not indexes:
        return {names[0]: None}
    found = short_list(indexes or names)
    raise UserError(f"{path}: which of its files? It has {found}. Give the path of one.")


def _indexed(path: Path) -> dict[str, set[str] | None]:
    """Read an index. Its `weight_map` names the file that holds each tensor."""
    placed = trust.parse_json(trust.read_file(path, at_most=_MAX_INDEX), path).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{path}: it is no index: it has no weight_map.")
    found: dict[str, set[str] | None] = {}
    for tensor, name in placed.items():
        if not isinstance(name, str) or not name.endswith(SUFFIX) or Path(name).name != name or "\\" in name:
            raise UserError(f"{path}: {trust.shown(name)} is no {SUFFIX} file of its directory.")
        members = found.setdefault(name, set())
        assert members is not None
        members.add(tensor)
    if missing := sorted(name for name in found if not (path.parent / name).is_file()):
        raise UserError(f"{path}: files that it names are missing: {short_list(missing)}.")
    return found


def _pickles(which: str) -> str:
    return (
        f"{which} is a pickle, which can run code when it is loaded. Convert it once, where you trust it: "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')."
    )
