"""Replace a project's engine and its tests by a newer version. What belongs to the project stays as it is."""

import difflib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from savepoint.errors import UserError, short_list
from savepoint.template.creation import write_file
from savepoint.template.plan import ORIGINALS, Plan, plan
from savepoint.template.record import RECORD, Record, digest, read_record, write_record

USAGE = "usage: python -m savepoint upgrade --from <a clone or an archive of a newer Savepoint>"
_COPIER = ".copier-answers.yml"


def upgrade_project(project: Path, arguments: list[str]) -> int:
    """Let the newer version upgrade a project: its code knows which files have moved. Returns: the exit code.

    arguments: --from, and a clone of the template or an archive of one (.zip, .tar.gz).
    Raises: UserError if that is neither, or if this is no project.
    """
    match arguments:
        case ["--from", place] if place:
            source = Path(place)
        case _:
            raise UserError(f"Upgrade from where? {USAGE}")
    read_record(project)  # refuses at once what is no project
    if source.is_dir():
        return _run_newer(project, source.resolve())
    if not source.exists():
        raise UserError(f"{source} does not exist. Give a clone of the Savepoint template, or an archive of one.")
    with tempfile.TemporaryDirectory(prefix="savepoint-upgrade-") as place:
        return _run_newer(project, _unpacked(source, Path(place)))


def _run_newer(project: Path, template: Path) -> int:
    program = template / "src" / "savepoint" / "template"
    if not (program / "__main__.py").is_file():
        raise UserError(f"{template} is no clone of the Savepoint template, or one from before `upgrade`.")
    return subprocess.run([sys.executable, str(program), "apply", str(project)]).returncode


def _unpacked(archive: Path, place: Path) -> Path:
    """Unpack an archive. Returns: the template's directory, which may be the only folder in it."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(place)
        else:
            with tarfile.open(archive) as tarred:
                tarred.extractall(place, filter="data")
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise UserError(f"{archive} cannot be unpacked: {reason}. Give a .zip or a .tar.gz file.") from error
    inside = [*place.iterdir()]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else place


def apply_upgrade(project: Path, template: Path) -> int:
    """Bring this template's engine, tests, docs and configs into a project. Returns: the exit code.

    Raises: UserError if the project's engine was edited; nothing is changed then.
    """
    record = read_record(project)
    if (project / _COPIER).exists():
        raise UserError(
            f"copier keeps this project up to date: run `copier update --trust`. To leave copier, delete {_COPIER}."
        )
    new = plan(template, record.answers)
    if edited := _edited_engine(project, record, new, template):
        places = "\n".join(f"  {each}" for each in edited)
        raise UserError(
            f"The engine was edited here, and an upgrade would lose that:\n{places}\n"
            f"Move the change to src/{record.answers.package}/, or send it to Savepoint; then put the file back, for "
            "example with git checkout <commit> -- <file>. Nothing was changed."
        )
    changes = _changelog(project, new)
    yours = _replace(project, record, new)
    print(f"Savepoint {_named(record.version, record.commit)} → {_named(new.version, new.commit)}")
    _report(project, record, new, yours, changes)
    return 0


def _named(version: str, commit: str | None) -> str:
    return f"{version} ({commit[:12]})" if commit else version


def _state(project: Path, path: str) -> str | None:
    """Return the digest of a project's file, or None if there is none."""
    file = project / path
    return digest(file.read_bytes()) if file.is_file() else None


def _edited_engine(project: Path, record: Record, new: Plan, template: Path) -> list[str]:
    """Describe each file of the engine that is neither as it was written nor as the newer version has it."""
    known = {path for path in (*record.files, *new.files) if new.engine(path)}
    for folder in ("src/savepoint", ORIGINALS):
        found = (project / folder).rglob("*")
        paths = [each.relative_to(project).as_posix() for each in found if each.is_file()]
        known |= {each for each in paths if "__pycache__/" not in each and not each.rpartition("/")[2].startswith(".")}
    base = _Base(project, record, template)
    faults = []
    for path in sorted(known):
        now, newer = _state(project, path), digest(new.files[path]) if path in new.files else None
        if now in (record.files.get(path), newer):
            continue  # equal to the newer file if an interrupted upgrade has replaced it already
        if now is None:
            faults.append(f"{path}: deleted")
        elif path not in record.files:
            faults.append(f"{path}: added")
        else:
            faults.append(f"{path}: {_lines(base.content(path), (project / path).read_bytes())}")
    return faults


class _Base:
    """Finds files as the template wrote them, in the project's own git history or in the template's."""

    def __init__(self, project: Path, record: Record, template: Path) -> None:
        asked = _git(project, "log", "-1", "--format=%H", "--", RECORD)
        self._project, self._written = project, asked.decode().strip() if asked else None
        self._record, self._template = record, template

    def content(self, path: str) -> bytes | None:
        original = path.removeprefix(f"{ORIGINALS}/")
        places = ((self._project, self._written, path), (self._template, self._record.commit, original))
        for place, commit, name in places:
            found = _git(place, "show", f"{commit}:./{name}") if commit else None
            if found is not None and digest(found) == self._record.files[path]:
                return found
        return None


def _git(directory: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, capture_output=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _lines(before: bytes | None, now: bytes) -> str:
    """Say which lines of a file were edited.

    >>> _lines(b"a\\nb\\nc\\n", b"a\\nB\\nc\\nd\\n")
    'lines 2, 4'
    """
    if before is None:
        return "edited; which lines is not known, since the file's first version is in no git history"
    old, new = (each.decode(errors="replace").splitlines() for each in (before, now))
    numbers = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "delete":
            numbers.append(f"{start + 1} (lines are missing before it)")
        elif kind != "equal":
            numbers.append(f"{start + 1}" if end == start + 1 else f"{start + 1}-{end}")
    return f"line{'s' * (len(numbers) != 1 or '-' in numbers[0])} {short_list(numbers)}"


def _replace(project: Path, record: Record, new: Plan) -> dict[str, str]:
    """Write the template's files, and remove those that the newer version no longer has.

    Returns: the files that stay because they were edited here, with the digest of what the template had written.
    """
    yours = {}
    for path in new.files:
        if new.own(path):
            continue
        now, before = _state(project, path), record.files.get(path)
        if now not in (None, before, digest(new.files[path])) or (now is None and before is not None):
            yours[path] = before or ""
        else:
            write_file(project, path, new)
    for path in record.files.keys() - new.files.keys():
        now = _state(project, path)
        if now == record.files[path]:
            (project / path).unlink()
            _remove_empty((project / path).parent, project)
        elif now is not None:
            yours[path] = record.files[path]
    write_record(project, new, yours)
    return yours


def _remove_empty(folder: Path, project: Path) -> None:
    while folder != project and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _changelog(project: Path, new: Plan) -> list[str]:
    """Return the lines of the template's CHANGELOG that the project does not have yet."""
    path = f"{ORIGINALS}/CHANGELOG.md"
    file = project / path
    before = set(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else set()
    return [each for each in new.files[path].decode().splitlines() if each.strip() and each not in before]


def _report(project: Path, record: Record, new: Plan, yours: dict[str, str], changes: list[str]) -> None:
    """Print what changed, what stayed, and what to do next."""
    written = {path: digest(content) for path, content in new.files.items() if not new.own(path)}
    changed = [path for path, now in written.items() if record.files.get(path) != now]
    changed += record.files.keys() - written.keys()
    folders = Counter(_folder(each) for each in changed if each not in yours)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(folders.items()))
    print(f"files replaced, added or removed: {counts or 'none'}")
    for line in changes:
        print(f"  {line}")
    for path in sorted(yours):
        if path in new.files and yours[path] != digest(new.files[path]):
            print(f"yours stays: {path}. The newer one is {ORIGINALS}/{path}")
    if "pyproject.toml" in yours and (missing := _requirements(project, new)):
        print(f"pyproject.toml lacks what the newer engine asks for: {'; '.join(missing)}")
    print("next: make setup, make docs, make test, git diff, git commit")


def _folder(path: str) -> str:
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] in ("src", "tests") else parts[0]


def _requirements(project: Path, new: Plan) -> list[str]:
    """List the newer version's requirements that the project's own pyproject.toml does not have word for word."""
    own = (project / "pyproject.toml").read_text(encoding="utf-8")
    asked = new.files["pyproject.toml"].decode()
    table = re.search(r"^dependencies = \[\n(.*?)^\]", asked, re.S | re.M)
    wanted = re.findall(r'^\s+"([^"]+)"', table[1], re.M) if table else []
    return [each for each in wanted if f'"{each}"' not in own]
