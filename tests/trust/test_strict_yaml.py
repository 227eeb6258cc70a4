"""config.yaml: what is written is read back exactly, and a stranger's file can hold nothing else."""

import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from savepoint.errors import ConfigError, HostileError, UserError
from savepoint.trust.strict_yaml import MAX_BYTES, MAX_NODES, dump_config, parse_config, shown

TEXTS = ["on", "off", "yes", "No", "true", "null", "~", "", " ", "1e5", "1e-05", "1_000", "010", "0o17", "0x1F", "0b1", "12:30:00",
         "1:30", "2020-01-01", "2020-01-01T00:00:00Z", "=", "<<", "a: b", "- a", "&a", "*a", "!tag", "%TAG", "@x", "`x`", "#x",
         "a #b", "'", '"', "\\", "a\nb", "a\n\n  b\n", "\n", "\t", " a ", "a\r\nb", "\x85", "\u2028", "\u2029", "\ufeff", "\x00",
         "\x1b[31m", "\x7f", "é", "😀", ".inf", ".nan", "-", "?", ":", "|", ">", "{", "[", "a" * 500, "x " * 200, ".5", "+1", "---",
         "...", "--- a", "0.1.2", "-.5", "1.", "1e5.0", "NaN", "Infinity"]  # fmt: skip
VALUES: list[Any] = [
    *TEXTS,
    0,
    -1,
    2**64 - 1,
    -(2**63),
    1e-05,
    1e5,
    1e16,
    1e300,
    5e-324,
    -0.0,
    0.1,
    1.0,
    True,
    False,
    None,
    [],
    {},
]

plain_text = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "${" not in text)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain_text
)
trees = st.recursive(
    scalars | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text | st.sampled_from(TEXTS), inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_value_comes_back_with_its_type(value: Any) -> None:
    for config in ({"a": value}, {"a": [value, {"b": value}]}):
        assert same(parse_config(dump_config(config)), config)
        assert same(parse_config(dump_config(config).encode()), config)
    if isinstance(value, str):
        assert same(parse_config(dump_config({value: 1})), {value: 1})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(plain_text, trees, max_size=5))
@example({"a": {"b": "\x85 \u2028"}})
def test_dump_and_parse_are_inverses(config: dict[str, Any]) -> None:
    assert same(parse_config(dump_config(config)), config)


def test_order_is_kept_and_a_shared_value_is_written_twice() -> None:
    shared = [1, 2]
    text = dump_config({"b": shared, "a": shared})
    assert text == "b:\n- 1\n- 2\na:\n- 1\n- 2\n"


def test_numbers_as_text_are_quoted_for_readers_of_either_yaml_version() -> None:
    assert dump_config({"a": "1e5", "b": "0o17"}) == "a: '1e5'\nb: '0o17'\n"


def test_what_is_not_plain_cannot_be_written() -> None:
    with pytest.raises(yaml.YAMLError):
        dump_config({"a": object()})


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
HOSTILE = [
    (BOMB, "config.yaml: a: the anchor &a."),
    ("a: *b", "config.yaml: a: the alias *b."),
    ("x: 1\na: &b 1", "config.yaml: a: the anchor &b."),
    ("&a b: 1", "config.yaml: the anchor &a."),
    ("a: [&b 1]", "config.yaml: a[0]: the anchor &b."),
    ("a: &b {c: *b}", "config.yaml: a: the anchor &b."),
    (
        "a: !!python/object/apply:os.system [x]",
        "config.yaml: a: the tag 'tag:yaml.org,2002:python/object/apply:os.system'.",
    ),
    ("a: !!python/name:os.system ''", "config.yaml: a: the tag"),
    ("a: !!pathlib.PosixPath x", "config.yaml: a: the tag"),
    ("a: !!str 1", "config.yaml: a: the tag"),
    ("a: ! 1", "config.yaml: a: the tag '!'."),
    ("a: !!binary eA==", "config.yaml: a: the tag"),
    ("a: !!set {x}", "config.yaml: a: the tag"),
    ("!!map {a: 1}", "config.yaml: the tag"),
    ("!!str a: 1", "config.yaml: the tag"),
    ("%TAG ! tag:x,2000:\n---\na: !foo 1", "config.yaml: a: the tag 'tag:x,2000:foo'."),
    ("a: 1\n<<: {b: 2}", "config.yaml: the merge key <<."),
    ("a: {<<: [{b: 1}]}", "config.yaml: a: the merge key <<."),
    ("a: <<", "config.yaml: a: the merge key <<."),
    ("a: 1\na: 2", "config.yaml: a: a duplicate key."),
    ("a: {b: 1, 'b': 2}", "config.yaml: a.b: a duplicate key."),
    ("a: ${oc.env:HOME}", "config.yaml: a: the interpolation '${oc.env:HOME}'."),
    ("a: ['x ${y}']", "config.yaml: a[0]: the interpolation"),
    ("'${a}': 1", "config.yaml: the interpolation"),
    ("a: |\n  x\n  ${y}\n", "config.yaml: a: the interpolation"),
    ('a: "\\x24{y}"', "config.yaml: a: the interpolation"),
    ("a: 1\n---\nb: 2", "config.yaml: more than one document."),
    ("[" * 40 + "]" * 40, "nested deeper than 32 levels."),
    ("[" * 500_000, "nest"),  # PyYAML 6.0.4 has a limit of its own, and says so in its words
    ("a: " + "{a: " * 100_000, "nested deeper than 32 levels."),
    ("a: [" + "1," * MAX_NODES + "]", f"more than {MAX_NODES} values."),
    ("#" * (MAX_BYTES + 1), f"config.yaml has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are read."),
    ("a: *\x1b[31m", "config.yaml"),
]
UNREADABLE = [
    ("", "config.yaml is empty."),
    ("# nothing", "config.yaml is empty."),
    ("null", "config.yaml must hold keys and values at its top."),
    ("- a", "config.yaml must hold keys and values at its top."),
    ("a", "config.yaml must hold keys and values at its top."),
    ("a: [", "config.yaml is not valid YAML:"),
    ("a: b: c", "config.yaml is not valid YAML:"),
    ("a: \x00", "config.yaml is not valid YAML:"),
    ("a: \x1b[31m", "config.yaml is not valid YAML:"),
    ("a: \ud800", "config.yaml is not valid YAML:"),
    (b"a: \xff", "config.yaml is not valid YAML:"),
    ("a: 1".encode("utf-16"), "config.yaml is not valid YAML:"),
    ("1: 2", "config.yaml: the key 1 must be text. Quote it."),
    ("null: 2", "config.yaml: the key None must be text. Quote it."),
    ("a: {true: 2}", "a: the key True must be text. Quote it."),
    ("? [a, b]\n: 1", "config.yaml: the key ['a', 'b'] must be text."),
    ("? {a: b}\n: 1", "config.yaml: the key {'a': 'b'} must be text."),
    ("a: 2020-01-01", "a='2020-01-01': is no plain value (it reads as timestamp). Quote it."),
    ("a: =", "a='=': is no plain value (it reads as value). Quote it."),
    ("a: " + "9" * 5000, "is no plain value (it reads as int). Quote it."),
    ("a: 1" + ":1" * 400_000, "is no plain value (it reads as int). Quote it."),
    ("a: 0b_", "a='0b_': is no int. Quote it."),
    ("a: 1\n b: 2", "config.yaml is not valid YAML:"),
    ("a: @x", "config.yaml is not valid YAML:"),
    ("a: 'x", "config.yaml is not valid YAML:"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_resolved_config_never_holds_is_hostile(text: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises((HostileError, ConfigError)) as raised:
        parse_config(text)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
    assert time.process_time() - started < 20  # and not minutes
    if "valid YAML" not in str(raised.value):
        assert isinstance(raised.value, HostileError)


@pytest.mark.parametrize(("text", "message"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_is_no_plain_yaml_is_refused_with_its_place(text: str | bytes, message: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError) as raised:
        parse_config(text)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
    assert time.process_time() - started < 20  # and not minutes


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("a:&*!<-[]{},'\"|>? \n\t#%1.e0${}~=")) | st.binary(max_size=60))
def test_any_text_gives_a_plain_config_or_a_users_error(text: str | bytes) -> None:
    try:
        config = parse_config(text)
    except UserError:
        return
    assert same(parse_config(dump_config(config)), config)


def test_text_is_shown_short_and_in_ascii() -> None:
    assert shown("torch.optim.\u0410dam") == "'torch.optim.\\u0410dam'"
    assert shown("\x1b[31m") == "'\\x1b[31m'"
    assert len(shown("x" * 10**6)) == 83
