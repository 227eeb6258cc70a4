"""Choose names by patterns, as configs write them.

In a pattern `*` stands for any characters, dots included, and `?` for one: `backbone.*`, `*.bias`.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

from savepoint.config.reading import closest
from savepoint.errors import ConfigError, short_list


def match(patterns: object, names: Sequence[str], *, path: str, what: str = "parameter") -> set[str]:
    """Return the names that at least one pattern matches.

    patterns: a pattern or a list of them, from a config. path: their place in it. what: what errors call a name.
    Raises: ConfigError for a pattern that matches no name, with the closest one that would.

    >>> sorted(match(["head.*", "*.bias"], ["body.weight", "body.bias", "head.weight"], path=""))
    ['body.bias', 'head.weight']
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, list) or not listed or not all(isinstance(each, str) for each in listed):
        raise ConfigError(f"{path}={patterns}: must be a pattern over {what} names, or a list: for example head.*")
    found: set[str] = set()
    for pattern in listed:
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(f"{path}={pattern}: matches no {what}.{_suggestion(pattern, names)}")
        found.update(matched)
    return found


def rename(rules: Mapping[str, str], names: Iterable[str], *, path: str) -> dict[str, str]:
    """Return the new name of each name. The first rule whose pattern matches decides; others keep their names.

    rules: pattern to new name, in which each `*` stands for what the `*` at that place of the pattern matched.
    path: the place of the rules in the config.
    Raises: ConfigError for a rule that matches no name, or has more `*` in the new name than in the pattern.

    >>> rename({"module.*": "*", "fc.*": "head.*"}, ["module.stem", "fc.bias", "norm"], path="")
    {'module.stem': 'stem', 'fc.bias': 'head.bias', 'norm': 'norm'}
    """
    names = list(names)
    for pattern, new in rules.items():
        if new.count("*") > pattern.count("*"):
            raise ConfigError(f"{path}: {new!r} has a * for which {pattern!r} has none.")
        if not any(re.fullmatch(_expression(pattern), name) for name in names):
            raise ConfigError(f"{path}={pattern}: matches no name.{_suggestion(pattern, names)}")
    return {name: _renamed(rules, name) for name in names}


def _renamed(rules: Mapping[str, str], name: str) -> str:
    for pattern, new in rules.items():
        if found := re.fullmatch(_expression(pattern), name):
            parts = new.split("*")
            return parts[0] + "".join(text + part for text, part in zip(found.groups(), parts[1:]))
    return name


def _expression(pattern: str) -> str:
    return "".join({"*": "(.*)", "?": "."}.get(sign, re.escape(sign)) for sign in pattern)


def _suggestion(pattern: str, names: Sequence[str]) -> str:
    modules = {f"{name[:at]}.*" for name in names for at, sign in enumerate(name) if sign == "."}
    return closest(pattern, {*names, *modules}) or f" There are: {short_list(names, most=6)}."
