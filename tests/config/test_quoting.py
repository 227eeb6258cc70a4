"""Raw text and paths on the command line, which Hydra takes as they were typed."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from savepoint.config import compose, quote_paths, quote_raw
from savepoint.errors import UserError


def hydra_reads(argument: str) -> object:
    return OverridesParser.create().parse_override(argument).value()


RAW = ["123e4567", "12345678", "abc=def", "a(1)", "a,b", "a, b", "'", '"', "'a'", '"a"', "\\", "\\\\", "a\\", "\\'", "a\\'b\\",
       " ", " a ", "a b", "", "null", "true", "1_000", "0x1", "inf", "nan", "[a", "[a]", "{a: b}", "choice(a,b)", "range(1,3)", "é 😀",
       "C:\\runs\\x", "runs/2026-01-01/x@best", "a@1", "$x", "{x}", "$ {x}", "~", "?", "??", "*", "glob(*)", "#", ":", "\t", "a\nb",
       "shuffle(1)", "=", "==", "a=1,2", "%", "\x7f", "\u2028"]  # fmt: skip


@pytest.mark.parametrize("raw", RAW)
def test_raw_text_arrives_as_it_was_typed(raw: str) -> None:
    [argument] = quote_raw([f"init_from={raw}"], ("init_from",))
    assert hydra_reads(argument) == raw


@pytest.mark.parametrize(
    "raw", ["123e4567", "abc=def", "a,b", "'", "\\'", " a ", "null", "[a", "{a: b}", "$ {x}", "a\nb"]
)
def test_raw_text_is_composed_as_it_was_typed(raw: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("init_from: null\n")
    assert compose(quote_raw([f"init_from={raw}"], ("init_from",)), tmp_path)["init_from"] == raw


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(st.sampled_from("\\'\"$ {a,=()[]@\n\t")))
def test_any_raw_text_arrives_or_is_refused(raw: str) -> None:
    try:
        [argument] = quote_raw([f"init_from={raw}"], ("init_from",))
    except UserError:
        assert "${" in raw or raw == "???"
        return
    assert hydra_reads(argument) == raw


@pytest.mark.parametrize("raw", ["${x}", "a${oc.env:HOME}", "\\${x}", "${", "???"])
def test_text_that_omegaconf_would_act_on_is_refused(raw: str) -> None:
    with pytest.raises(UserError, match=r"cannot name a run"):
        quote_raw([f"init_from={raw}"], ("init_from",))


@pytest.mark.parametrize(
    "path", ["C:\\Users\\RUNNER~1\\Temp\\a", "\\\\server\\runs", "/a b/(1), [x]=y", "~/runs", "é/物理"]
)
def test_a_directory_arrives_as_it_was_typed(path: str) -> None:
    [argument] = quote_paths([f"hydra.run.dir={path}"], ("hydra.run.dir",))
    assert hydra_reads(argument) == path


def test_a_directory_that_is_quoted_or_has_a_hole_is_left_to_hydra() -> None:
    argv = ["hydra.run.dir='a b'", 'hydra.run.dir="a"', "hydra.run.dir=runs/${name}", "hydra.run.dir", "seed=~", "-m"]
    assert quote_paths(argv, ("hydra.run.dir",)) == argv


def test_other_arguments_are_left_alone() -> None:
    argv = ["-m", "seed=1,2", "init_fromm=1", "x.init_from=1", "init_from", "+init_from=1"]
    assert quote_raw(argv, ("init_from",)) == argv
