"""Errors for mistakes that a person can make. Bugs are other exceptions, and keep their traceback."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake. The text says what was found, what was expected, what to do. The scripts print it and exit with 2."""


class ConfigError(UserError):
    """A config that cannot be trained. The text has one line for each fault."""


class NonFiniteError(UserError):
    """A logged value that is NaN or infinite ended the run. The run has failed, and its directory is kept."""


class BuildError(ConfigError):
    """A class that the config names failed while it was built, so a value or the class's own code is wrong.

    `__cause__` is the error that the class raised. Its traceback belongs in train.log.
    """


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or does not fit. If it is damaged, resume goes back to the one before."""


class MisfitError(CheckpointError):
    """A checkpoint whose weights do not fit the model. excess: the names that only `init.exclude` can leave out."""

    def __init__(self, text: str, excess: Sequence[str]) -> None:
        super().__init__(text)
        self.excess = excess


class HostileError(CheckpointError):
    """A checkpoint that asks for something that this repository does not allow. Resume refuses the whole run."""


def short_list(names: Sequence[str], *, most: int = 5) -> str:
    """Join the first `most` names with commas, and say how many more there are. A message stays one line.

    >>> short_list(["a", "b", "c"]), short_list(["a", "b", "c"], most=1), short_list([])
    ('a, b, c', 'a and 2 more', 'none')
    """
    rest = len(names) - most
    return (", ".join(names[:most]) or "none") + (f" and {rest} more" if rest > 0 else "")
