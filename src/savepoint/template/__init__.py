"""Make a project of one's own from this repository, and bring a newer engine into such a project.

This wing imports the standard library alone: copier and cookiecutter run it in an environment of their own, where
neither torch nor any other dependency of the engine is installed.

Rooms, in reading order:
    answers    what a new project is asked for: its names, author, licence, tracker, worked examples
    examples   which files belong to which worked example
    renaming   give files of the template the project's names
    pages      the files that are written anew: README, CHANGELOG, LICENSE
    reference  docs/configs.md, for the project's own conf/
    plan       every file of a project, from the template and the answers
    record     .savepoint.json: what the template wrote into a project, by digest
    creation   write a new project, and make its first commit
    upgrade    replace a project's engine by a newer one
    suite      run the engine's tests, in the template and in a project
    verbs      the commands of this wing
    __main__   the same commands where nothing is installed: python src/savepoint/template …
"""

from savepoint.template.verbs import run

__all__ = ["run"]
