"""The command line: `python -m savepoint …`. Each command has one line here, and a room in commands/."""

import os
import sys
from pathlib import Path

from savepoint import commands, parallel, system, trust
from savepoint.errors import UserError

USAGE = """\
usage: python -m savepoint ls [text|key=value …] [--sweep SWEEP] [--sort KEY] [--json]
                                              the runs here, newest last
       python -m savepoint show <run>[@best] [--json]
                                              what is known of a run, or what is inside a checkpoint
       python -m savepoint plot <run> … [--keys train/loss,val/loss] [--to FILE.png]
                                              what runs logged, as a picture and in the terminal
       python -m savepoint rm <run> [--yes]   remove a run and all of its checkpoints
       python -m savepoint diff <run>[@best] <run>[@best] [--json]
                                              what differs between two runs or checkpoints
       python -m savepoint verify <run>       whether its checkpoints are sound, all of them or the one after @
       python -m savepoint verify <run> --exact [key=value …]
                                              whether a resume of it gives the same bits, tried on its own config
       python -m savepoint reproduce <run>[@best] [--epochs N] [--env] [--keep] [--trust-code] [--json]
                                              train it again with its own code, and compare every bit
       python -m savepoint evaluate <run>[@best] [--split val|test] [--json] [data.…=…]
                                              measure a checkpoint, on its own data or others
       python -m savepoint export <run>[@best] --to DIR [--onnx] [--pt2] [--ema] [--json]
                                              weights, config and model card, for use elsewhere
       python -m savepoint sync <run> | --all [tracker.uri=…]
                                              send the tracker what it lacks: points, checkpoints, figures, the status
       python -m savepoint new DIR [--name TEXT] [--package NAME] [--examples all|one|none] …
                                              a project of your own, made from this template
       python -m savepoint upgrade --from <clone or archive>
                                              a newer engine in a project that was made so
       python -m savepoint test-engine        the engine's own tests
       python -m savepoint demo               train, kill, resume, and compare every bit
       python -m savepoint ui [--port 5000] [tracker=aim] [tracker.uri=…]
                                              the tracker's web page, on this machine only"""
REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    system.terminal.print_anything()
    if not parallel.leads():
        return 0  # torchrun has started several processes, and one is enough to look at runs
    if "--exact" in arguments and parallel.count() > 1:
        arguments = [*arguments, f"trainer.processes={parallel.count()}"]  # it starts ranks of its own
    parallel.be_alone()
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {trust.printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return system.signals.say(interrupt)
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["demo" | "sync" | "ui" | "verify" as verb, *rest] if {"-h", "--help"} & {*rest}:
            print(_usage(verb))
            return 0
        case ["diff", *rest]:
            return commands.compare(REPOSITORY, rest)
        case ["reproduce", *rest]:
            return commands.reproduce_run(REPOSITORY, rest)
        case ["ls", *rest]:
            return commands.list_runs(REPOSITORY, rest)
        case ["show", *rest]:
            return commands.show_run(REPOSITORY, rest)
        case ["plot", *rest]:
            return commands.plot_runs(REPOSITORY, rest)
        case ["rm", *rest]:
            return commands.remove_run(REPOSITORY, rest)
        case ["verify", query, "--exact", *overrides] | ["verify", "--exact", query, *overrides]:
            return commands.verify_exact(REPOSITORY, query, overrides)
        case ["verify", query] if query != "--exact":
            return commands.verify_run(REPOSITORY, query)
        case ["evaluate", *rest]:
            return commands.evaluate_run(REPOSITORY, rest)
        case ["export", *rest]:
            return commands.export_model(REPOSITORY, rest)
        case ["sync", *rest]:
            return commands.sync_runs(REPOSITORY, rest)
        case ["new" | "upgrade" | "test-engine" as verb, *rest]:
            from savepoint import template  # only for these

            return template.run(verb, REPOSITORY, rest)
        case ["demo"]:
            return commands.play_demo(REPOSITORY)
        case ["ui", *rest]:
            return commands.serve_ui(REPOSITORY, rest)
        case [] | ["-h"] | ["--help"]:
            print(USAGE)
            return 0
    raise UserError(f"{' '.join(arguments)!r} is no command.\n{USAGE}")


def _usage(verb: str) -> str:
    """Return the lines of the usage that are about one command, for those that have no page of their own."""
    entries = USAGE.removeprefix("usage: ").split("\n       python ")
    mine = [entry for entry in entries if entry.removeprefix("python ").split()[2] == verb]
    return "usage: python " + "\n       python ".join(mine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
