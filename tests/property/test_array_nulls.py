"""Arrays of texts and nulls, read back as PostgreSQL reads them."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pgnotifybus.database.queries import array

storable = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
telling = st.sampled_from("\"\\,{}[]= \t\n'NULLnul")
"""The characters of which arrays are made, and those that are skipped around elements."""

texts = st.text(telling | storable, max_size=12) | st.sampled_from(["", "NULL", "null", "Null"])
arrays = st.lists(st.none() | texts, max_size=12)


def parsed(text: str) -> list[str | None]:
    """What PostgreSQL reads: NULL without quotes is null, of whatever case; in quotes it is a text.

    Stricter than PostgreSQL: an element that is not null has to be in quotes.

    Source: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
    """
    assert text[0] == "{"
    assert text[-1] == "}"
    found: list[str | None] = []
    at, end = 1, len(text) - 1
    while at < end:
        if found:
            assert text[at] == ","
            at += 1
        if text[at] != '"':
            assert text[at : at + 4].upper() == "NULL"
            found.append(None)
            at += 4
            continue
        at += 1
        element = ""
        while text[at] != '"':
            at += text[at] == "\\"
            element += text[at]
            at += 1
        found.append(element)
        at += 1
    assert at == end
    return found


@given(arrays)
@example([None])
@example([None, None])
@example(["NULL", None, "null"])
@example([None, ""])
@example(["", None])
@example([None, '"', "\\", '","', "}", None])
def test_every_element_is_read_as_it_was_and_in_its_place(
    values: list[str | None],
) -> None:
    assert parsed(array(values)) == values


@given(st.lists(texts, max_size=12), st.lists(texts, max_size=12))
def test_texts_are_written_alike_whether_or_not_there_is_a_null(
    before: list[str], behind: list[str]
) -> None:
    """With a null they are written one by one, without one all at once."""
    around = [array(before)[1:-1], "NULL", array(behind)[1:-1]]
    written = ",".join(each for each in around if each)
    assert array([*before, None, *behind]) == "{" + written + "}"


@given(arrays)
def test_what_is_written_can_be_a_parameter(values: list[str | None]) -> None:
    """No NUL stands in for anything that is left in the text."""
    text = array(values)
    assert "\0" not in text
    assert array(tuple(values)) == text
