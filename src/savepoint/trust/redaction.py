"""Keep secrets out of configs, and redact them in command lines, patches and logs."""

import re

SECRET_KEYS = ("access_token", "api_key", "credentials", "password", "secret")

# The password of scheme://user:password@host. Starts at "://", so a long text is scanned once.
_URI_PASSWORD = re.compile(r"(?<=[A-Za-z0-9+.-]://)([^\s/?#:@\"']*:)([^\s/?#\"']+)(?=@)")

_KEY = rf"(?<![A-Za-z0-9_])(?:{'|'.join(SECRET_KEYS)})(?![A-Za-z0-9_])"
_ANNOTATION = r"(?:[A-Za-z_][\w.\[\] |]{0,60}?[ \t]*=[ \t]*)?"  # password: str = "…"
# Code that reads a secret from elsewhere holds none and is kept, as in a patch: password = os.environ["PASSWORD"]
_CODE = r"""[A-Za-z_][\w.]*(?:\(["'\w., ]*\)|\[["'\w., ]*\])"""
_QUOTED = r"""
    (?P<t>"{3}|'{3})(?P<triple>[\s\S]{1,2000}?)(?P=t)
  | (?P<q>\\+["'])(?P<escaped>(?:(?!(?P=q))[^\n]){1,1000})(?P=q)     # \"…\", as in JSON inside JSON
  | [rRbBfFuU]{0,2}"(?P<double>(?:[^"\\\n]|\\.)+)"
  | [rRbBfFuU]{0,2}'(?P<single>(?:[^'\\\n]|\\.)+)'
  | (?P<o>["'])(?!(?P=o))(?P<open>[^\n]+)                            # a quote that is never closed
"""
# Closing punctuation belongs to a bare value only where more of the value follows it.
_WORD = r"""(?:[^\s"'`,;)}\]]|[,;)}\]](?=[^\s"'`,;)}\]]))"""
_SECRET = re.compile(
    rf"""
    {_KEY} (?: \\*["'] )? [ \t]* (?:
        (?: == | != | := | [:=] ) [ \t]* {_ANNOTATION} (?: {_QUOTED} )
      | [:=] (?![:=]) [ \t]* (?! {_ANNOTATION} {_CODE} ) (?:
            (?<= [=] ) (?P<argument> {_WORD}+ )                          # key=value: one word
          | (?P<words> {_WORD}+ (?: [ \t]+ {_WORD}+ )* )               # key: value, key = value: to the line's end
        )
    )""".replace("[ |", r"[\ |"),
    re.VERBOSE,
)
_GROUPS = ("triple", "escaped", "double", "single", "open", "argument", "words")
# Texts in the place of a value that are no secret: null, a type, or a variable of the same name.
_EMPTY = {"null", "None", "~", "str", "str | None", "[redacted]", "[redacted", *SECRET_KEYS}
REDACTED = "[redacted]"


def has_uri_password(text: str) -> bool:
    """Whether a text contains an address with a password in it, such as ftp://me:pw@host."""
    return _URI_PASSWORD.search(text) is not None


def redact(text: str) -> str:
    """Replace each value after a secret key, and each password in a URI, by [redacted]. Keep all else.

    >>> redact("train.py model.password=hunter2 data.uri=ftp://me:pw@host seed=1")
    'train.py model.password=[redacted] data.uri=ftp://me:[redacted]@host seed=1'
    """
    return _SECRET.sub(_hide, _URI_PASSWORD.sub(rf"\g<1>{REDACTED}", text))


def redact_arguments(arguments: list[str]) -> list[str]:
    """Redact a command line, argument by argument, so that a secret with spaces or quotes is hidden whole."""
    hidden = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        secret = equals and value not in _EMPTY | {""} and re.split(r"[.+@/-]", key)[-1] in SECRET_KEYS
        hidden.append(f"{key}={REDACTED}" if secret else redact(argument))
    return hidden


def _hide(match: re.Match[str]) -> str:
    whole, start = match.group(), match.start()
    for name in _GROUPS:
        value = match.group(name)
        if value is not None:
            if value in _EMPTY:
                return whole
            first, last = match.span(name)
            return f"{whole[: first - start]}{REDACTED}{whole[last - start :]}"
    raise AssertionError(whole)
