"""Run the commands of this wing: new, upgrade, test-engine, and those that copier, cookiecutter and upgrades call."""

from pathlib import Path

from savepoint.errors import UserError
from savepoint.template import creation, suite, upgrade

USAGES = {"new": creation.USAGE, "upgrade": upgrade.USAGE, "test-engine": suite.USAGE}


def run(verb: str, repository: Path, arguments: list[str]) -> int:
    """Run one command. repository: the template or the project whose code this is. Returns: the exit code."""
    if verb in USAGES and {"-h", "--help"} & {*arguments[:1]}:
        print(USAGES[verb])
        return 0
    match verb:
        case "new":
            return creation.new_project(repository, arguments)
        case "complete":
            return creation.complete_project(repository, arguments)
        case "upgrade":
            return upgrade.upgrade_project(repository, arguments)
        case "apply":  # what `upgrade` runs, in the newer version's code
            return upgrade.apply_upgrade(Path(arguments[0]), repository)
        case "test-engine":
            return suite.run_engine_tests(repository, arguments)
    raise UserError(f"{verb!r} is no command of the template.")
