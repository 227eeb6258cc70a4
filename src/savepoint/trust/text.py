"""Make text that a stranger may have chosen fit for a terminal."""


def join_path(path: str, key: object) -> str:
    """Return the config path of a key. A key that is no plain name is escaped.

    >>> join_path("model", "hidden"), join_path("", "seed"), join_path("model", 3), join_path("model", chr(27) + "[31m")
    ('model.hidden', 'seed', 'model[3]', "model['\\\\x1b[31m']")
    """
    if isinstance(key, str) and key.isascii() and key.replace("-", "_").isidentifier() and len(key) <= 80:
        return f"{path}.{key}" if path else key
    return f"{path}[{shown(key)}]"


def shown(value: object) -> str:
    """Write a value in at most about 80 ASCII characters, so that look-alikes and control characters are visible."""
    # Cut first: an error about a string of a megabyte need not escape all of it.
    text = ascii(value[:81] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def printable(text: str, *, limit: int | None = None) -> str:
    """Escape characters that could move the cursor or hide text. Letters and line breaks stay.

    limit: how many characters of the text to show; None for all.

    >>> printable("größer" + chr(27) + "[2J" + chr(10) + "b" + chr(0x202E)), printable("abcdef", limit=3)
    ('größer\\\\x1b[2J\\nb\\\\u202e', 'abc...')
    """
    cut = text if limit is None else text[:limit]
    safe = "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in cut)
    return safe + ("..." if len(cut) < len(text) else "")
