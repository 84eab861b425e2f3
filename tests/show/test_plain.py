"""What we print steers no terminal and fits any encoding."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.show.plain import clean, in_encoding, one_line, painted, unpainted, visible

TEXTS = st.text(st.characters(codec="utf-8"))
CONTROL = {chr(n) for n in (*range(32), 127, *range(128, 160))} - {"\n", "\t"}


@given(TEXTS)
def test_no_control_character_is_left(text: str) -> None:
    assert not CONTROL & set(visible(text))
    assert not CONTROL & set(unpainted(text))
    assert not (CONTROL | {"\n", "\t"}) & set(one_line(text))


@given(TEXTS)
def test_what_is_visible_already_stays(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    assert text.isprintable() <= (visible(text) == text)


@given(TEXTS, st.sampled_from(["ascii", "latin-1", "cp1252", "koi8-r", "utf-8", "no such encoding"]))
def test_any_text_is_spelt_in_any_encoding(text: str, encoding: str) -> None:
    shown = in_encoding(text, encoding)
    shown.encode("ascii" if encoding == "no such encoding" else encoding)
    if text.isascii():
        assert shown == text


def test_signs_are_spelt_more_simply() -> None:
    text = "2 nodes × 8 · 1.6 GiB ± 7 % → Müller…"
    assert in_encoding(text, "ascii") == "2 nodes x 8 - 1.6 GiB +- 7 % -> Muller..."
    assert in_encoding(text, "latin-1") == "2 nodes × 8 · 1.6 GiB ± 7 % -> Müller..."


@pytest.mark.parametrize(
    "text",
    ["\x1b]0;owned\x07", "\x1b[2J", "\x1b[31", "a\rb", "\x9b2J", "\x1b[8mhidden\x1b]", "\u202egpj.exe"],
    ids=["title", "clear", "cut off", "return", "C1", "two", "right to left"],
)
def test_sequences_are_written_out(text: str) -> None:
    for shown in (painted(text), unpainted(text)):
        assert "\x1b]" not in shown
        assert "\x1b[2J" not in shown
        assert not {"\r", "\x07", "\x9b", "\u202e"} & set(shown)


def test_our_colours_pass_where_they_are_wanted() -> None:
    assert painted("\x1b[1;32mok\x1b[0m") == "\x1b[1;32mok\x1b[0m"
    assert unpainted("\x1b[1;32mok\x1b[0m") == "ok"


@given(st.recursive(TEXTS | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(TEXTS, x)))
def test_json_is_cleaned_to_its_last_string(data: object) -> None:
    told = json.dumps(clean(data), ensure_ascii=False)
    assert not CONTROL & set(told)
    assert "\\n" not in told.replace("\\\\n", "")
