"""Read what was typed after a command's name."""

from dataclasses import dataclass

from savepoint.errors import UserError


@dataclass(frozen=True)
class Options:
    """What was typed after a command's name.

    usage: the usage in one line. arguments: what is no option, in order. flags: the options that take no value.
    values: the value of each other option, by the option's name.
    """

    usage: str
    arguments: list[str]
    flags: frozenset[str]
    values: dict[str, str]

    def run(self) -> str:
        """Return the one run that was named. Raises: UserError with the usage for none or several."""
        if len(self.arguments) != 1:
            raise UserError(f"Which run? {self.usage}")
        return self.arguments[0]


def parse(arguments: list[str], usage: str, *, flags: tuple[str, ...] = (), values: tuple[str, ...] = ()) -> Options:
    """Sort what was typed into arguments and options.

    usage: the text for --help, whose first line is shown with an error. flags: the options that take no value, with
    their dashes. values: those that take one.
    Raises: SystemExit after --help is answered; UserError for an option that does not exist or lacks its value.
    """
    if {"-h", "--help"} & {*arguments}:
        print(usage)
        raise SystemExit(0)
    line = usage.partition("\n")[0]
    options, left = Options(line, [], frozenset({*flags} & {*arguments}), {}), [*arguments]
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name in values and (equals or left):
            options.values[name] = value if equals else left.pop(0)
        elif name in values:
            raise UserError(f"{name} needs a value. {line}")
        elif argument.startswith("-") and argument not in flags:
            raise UserError(f"{line.split()[4]} has no option {argument}. {line}")
        elif argument not in flags:
            options.arguments.append(argument)
    return options
