"""No secret reaches a command line, a patch or a log, and nothing else in them changes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from savepoint.trust.redaction import SECRET_KEYS, has_uri_password, redact, redact_arguments

CASES = [
    ("train.py model.password=hunter2 seed=1", "train.py model.password=[redacted] seed=1"),
    ("+model.password=ab)cd, y", "+model.password=[redacted], y"),
    ("--api_key=abc --x", "--api_key=[redacted] --x"),
    ("f(password=x), g", "f(password=[redacted]), g"),
    ("password: correct horse battery\nnext: 1", "password: [redacted]\nnext: 1"),
    ("{password: abc, user: x}", "{password: [redacted], user: x}"),
    ("a.secret: b", "a.secret: [redacted]"),
    ("api_key = hunter2", "api_key = [redacted]"),
    ('{"password": "a\\"b", "c": 1}', '{"password": "[redacted]", "c": 1}'),
    ("{'access_token': 'x y', 'b': 1}", "{'access_token': '[redacted]', 'b': 1}"),
    ('{"a": "{\\"password\\": \\"x y\\"}"}', '{"a": "{\\"password\\": \\"[redacted]\\"}"}'),
    ('+    password: str = "hunter2"', '+    password: str = "[redacted]"'),
    ("password = f'hunter2'", "password = f'[redacted]'"),
    ('if password == "x":', 'if password == "[redacted]":'),
    ('password="""a\nb"""', 'password="""[redacted]"""'),
    ('password="unterminated x', 'password="[redacted]'),
    ("postgres://u:p@ss@h/db?x=1", "postgres://u:[redacted]@h/db?x=1"),
    ("redis://:pw@h, ftp://a:b@c", "redis://:[redacted]@h, ftp://a:[redacted]@c"),
    ("credentials=a\r\nx", "credentials=[redacted]\r\nx"),
]
UNTOUCHED = [
    "seed=1", "db_password=x", "passwords: x", "password_length=8", "PGPASSWORD=x", "the password is wrong", 'password=""',
    "password: ''", "password=", "password: null", "password=None", "secret::x", "http://h:80/x@y", "user@host:path",
    "https://user@host", "def f(password: str, x: int):", "self.password = password", "f(password=password)",
    'password = os.environ["PASSWORD"]', 'f(password=os.getenv("PASSWORD", ""))', "secret: str = load_secret()",
    "a\r\n\tb\x00\x1b[31m é", "",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_secret_is_hidden_and_the_rest_stays(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_holds_no_secret_is_untouched(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_every_key_of_the_list_is_hidden_in_every_form(key: str) -> None:
    for text in (
        f"{key}=hunter2",
        f"{key}: hunter2",
        f'"{key}": "hunter2"',
        f"'{key}': 'hunter2'",
        f'{key} = "hunter2"',
    ):
        assert "hunter2" not in redact(text)


@given(st.text())
def test_text_without_a_key_or_an_address_is_untouched(text: str) -> None:
    if not any(key in text for key in SECRET_KEYS) and "://" not in text:
        assert redact(text) == text


def test_an_argument_is_hidden_whole_whatever_its_value_holds() -> None:
    typed = ["model.password=a b'c\")", "+api_key=z", "seed=1", "uri=ftp://a:b@c", "secret=", "secret=null"]
    expected = [
        "model.password=[redacted]",
        "+api_key=[redacted]",
        "seed=1",
        "uri=ftp://a:[redacted]@c",
        "secret=",
        "secret=null",
    ]
    assert redact_arguments(typed) == expected


def test_a_password_in_an_address_is_found() -> None:
    assert has_uri_password("sqlite+x://u:p@h")
    assert has_uri_password("redis://:p@h")
    assert not has_uri_password("http://127.0.0.1:5000")
    assert not has_uri_password("http://h:5000/a@b")


@pytest.mark.parametrize(
    "text",
    ["a" * 300_000, "://" * 100_000, "://a:" * 60_000, "password=" * 30_000, 'password="' * 30_000, "password: " * 30_000,
     'password\\": \\"' * 20_000, "password: a " * 20_000, "password: a = " * 20_000, "password=" + "(" * 200_000,
     'password="' + "\\" * 200_000, "password=a(" + "a" * 200_000],
)  # fmt: skip
def test_a_long_hostile_text_takes_no_long_time(text: str) -> None:
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 20  # and not minutes
