"""Quote raw text and paths on the command line, so that Hydra takes them as they were typed.

Hydra is imported inside the function: most commands never need it.
"""

from savepoint.errors import UserError


def quote_raw(argv: list[str], keys: tuple[str, ...]) -> list[str]:
    """Quote `key=RAW` on the command line for each of `keys`, so that Hydra takes RAW as text, whatever it holds.

    Unquoted, the run id 123e4567 would arrive as infinity, 12345678 as an integer, and abc=def as an error.
    Raises: UserError for `${` and `???`, which OmegaConf interprets even inside quotes.

    >>> quote_raw(["init_from=123e4567", "seed=1"], ("init_from",))
    ["init_from='123e4567'", 'seed=1']
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    quoted = []
    for argument in argv:
        key, equals, raw = argument.partition("=")
        if not equals or key not in keys:
            quoted.append(argument)
        elif "${" in raw or raw == "???":
            raise UserError(f"{argument}: '${{' and '???' have a meaning in configs and cannot name a run. Rename it.")
        else:
            quoted.append(f"{key}={QuotedString(raw, Quote.single).with_quotes()}")
    return quoted


def quote_paths(argv: list[str], keys: tuple[str, ...]) -> list[str]:
    """Quote `key=PATH` on the command line for each of `keys`, unless it is quoted, or Hydra is to fill in a `${`.

    Unquoted, Hydra would read a path that holds `~`, brackets or a comma as something else, or refuse it.

    >>> quote_paths(["hydra.run.dir=C:\\\\RUNNER~1", "hydra.run.dir='a'"], ("hydra.run.dir",))
    ["hydra.run.dir='C:\\\\RUNNER~1'", "hydra.run.dir='a'"]
    """
    begun = tuple(f"{key}=" for key in keys)
    plain = [each.startswith(begun) and "${" not in each and each.partition("=")[2][:1] not in "'\"" for each in argv]
    return [quote_raw([each], keys)[0] if paths else each for each, paths in zip(argv, plain)]
