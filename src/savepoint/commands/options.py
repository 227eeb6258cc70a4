"""Read what was typed after a command's name."""

from dataclasses import dataclass

from savepoint.errors import UserError


@dataclass(frozen=True)
class Options:
    """arguments: what is no option, in order. flags: the options without a value. values: those with one, by name."""

    arguments: list[str]
    flags: frozenset[str]
    values: dict[str, str]

    def run(self, usage: str) -> str:
        """Return the one run that was named. Raises: UserError with the usage for none or several."""
        if len(self.arguments) != 1:
            raise UserError(f"Which run? {usage}")
        return self.arguments[0]


def parse(arguments: list[str], usage: str, *, flags: tuple[str, ...] = (), values: tuple[str, ...] = ()) -> Options:
    """Sort what was typed. flags, values: the options that exist, with their dashes.

    Raises: SystemExit once --help is answered; UserError for an option that does not exist or lacks its value.
    """
    if {"-h", "--help"} & {*arguments}:
        print(usage)
        raise SystemExit(0)
    options, left = Options([], frozenset({*flags} & {*arguments}), {}), [*arguments]
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name in values and (equals or left):
            options.values[name] = value if equals else left.pop(0)
        elif name in values:
            raise UserError(f"{name} needs a value. {usage}")
        elif argument.startswith("-") and argument not in flags:
            raise UserError(f"{usage.split()[4]} has no option {argument}. {usage}")
        elif argument not in flags:
            options.arguments.append(argument)
    return options
