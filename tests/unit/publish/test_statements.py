"""The statements that send, as data: what they carry, and in which order it is asked."""

from __future__ import annotations

import os
import random
import time
import uuid
from typing import Any

import pytest

from pgnotifybus.core.envelope import Reference, Stamp, refer, unpack
from pgnotifybus.core.names import quote
from pgnotifybus.database.queries import Query, Script, array
from pgnotifybus.errors import PayloadTooLarge
from pgnotifybus.links.base import NOTIFY, Rows
from pgnotifybus.publish.message import Envelope, message
from pgnotifybus.publish.statements import new_row, send_many, send_one

NOISE = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(9_000))
"""It does not fit into a notification, not even compressed."""

MAY: Rows = [("true", "false")]
"""What the server answers where the table is there and may be written."""


class Played:
    """A script that is run by hand."""

    def __init__(self, script: Script[Any]) -> None:
        self._script = script
        self.query: Query | None = next(script, None)

    def answer(self, rows: Rows) -> None:
        try:
            self.query = self._script.send(rows)
        except StopIteration:
            self.query = None


# -- one ------------------------------------------------------------------------------------------


def test_what_fits_is_one_query() -> None:
    played = Played(send_one(message("orders", "42"), "pgnotifybus"))
    assert played.query == Query(NOTIFY, ("orders", "42"))
    played.answer([("",)])
    assert played.query is None


def test_an_enveloped_one_is_sent_as_it_is_carried() -> None:
    played = Played(send_one(message("orders", "42", Envelope("me")), "pgnotifybus"))
    assert played.query == Query(NOTIFY, ("orders", "\x01pgnb1;o=me\x0242"))


@pytest.mark.parametrize("schema", ["pgnotifybus", 'my "own"', "{schema}", "a%b:c$1"])
def test_what_does_not_fit_is_spilled_if_the_server_says_that_it_may(schema: str) -> None:
    large = message("orders", NOISE, Envelope("me"))
    played = Played(send_one(large, schema))
    assert played.query is not None
    assert played.query.parameters == (schema,)
    assert "INSERT" not in played.query.sql.replace("'INSERT'", "")
    played.answer(MAY)
    assert played.query is not None
    assert f"INSERT INTO {quote(schema)}.payloads " in played.query.sql
    row, channel, payload, wire = list(played.query.parameters)
    assert (channel, payload) == ("orders", NOISE)
    assert wire == refer(str(row), large.size, large.stamp)
    assert unpack(wire) == Reference(str(row), 27_000, Stamp("me"))
    played.answer([("",)])
    assert played.query is None


@pytest.mark.parametrize(
    ("rows", "advice"),
    [
        ([], r"schema install.*send a key"),
        ([("false", "false")], r'GRANT INSERT ON "my ""own"""\.payloads'),
        ([(None, "false")], "GRANT USAGE"),
        ([("true", "true")], "read-only"),
    ],
)
def test_what_cannot_be_spilled_is_refused_before_anything_can_fail(
    rows: Rows, advice: str
) -> None:
    """Trap 25: an INSERT that fails would abort the user's transaction."""
    played = Played(send_one(message("orders", NOISE), 'my "own"'))
    with pytest.raises(PayloadTooLarge, match=advice) as caught:
        played.answer(rows)
    assert (caught.value.size, caught.value.limit) == (27_000, 7_999)


def test_a_payload_that_only_its_envelope_makes_too_large_is_told_so() -> None:
    dice = random.Random(1)
    payload = "".join(chr(dice.randrange(0x21, 0x7F)) for _ in range(7_999))
    assert message("orders", payload).wire == payload
    stamped = message("orders", payload, Envelope("me"))
    assert stamped.wire is None
    played = Played(send_one(stamped, "pgnotifybus"))
    with pytest.raises(PayloadTooLarge, match="envelope") as caught:
        played.answer([])
    assert caught.value.size > caught.value.limit


# -- many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("identify", [False, True])
def test_many_are_one_query_in_their_order(identify: bool) -> None:
    messages = [message("b", "2"), message("a", "1", Envelope("me")), message("b", '"{}\\')]
    query = send_many(messages, "pgnotifybus", identify=identify)
    assert query.parameters == (
        array(["b", "a", "b"]),
        array(["2", "\x01pgnb1;o=me\x021", '"{}\\']),
    )
    assert "INSERT" not in query.sql
    assert ("pg_control_system" in query.sql) == identify


def test_of_many_only_those_are_spilled_that_have_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter(str(uuid.UUID(int=number)) for number in (1, 2))
    monkeypatch.setattr("pgnotifybus.publish.statements.new_row", lambda: next(rows))
    messages = [
        message("a", NOISE, Envelope("me")),
        message("b", "small"),
        message("c", "another " + NOISE),
    ]
    query = send_many(messages, 'my "own"', identify=False)
    first, second = (str(uuid.UUID(int=number)) for number in (1, 2))
    assert query.parameters == (
        array(["a", "b", "c"]),
        array([refer(first, 27_000, Stamp("me")), "small", refer(second, 27_008)]),
        array([first, second]),
        array(["a", "c"]),
        array([NOISE, "another " + NOISE]),
    )
    assert 'INSERT INTO "my ""own""".payloads ' in query.sql
    assert query.sql.index("INSERT") < query.sql.index("pg_notify")


@pytest.mark.parametrize("payload", ["small", NOISE])
def test_the_parameters_of_a_statement_are_numbered_without_a_hole(payload: str) -> None:
    query = send_many([message("a", payload)], "pgnotifybus", identify=True)
    numbers = {int(part[0]) for part in query.sql.split("$")[1:]}
    assert numbers == set(range(1, len(query.parameters) + 1))


# -- rows -----------------------------------------------------------------------------------------


def test_the_id_of_a_row_is_a_uuid_of_version_7() -> None:
    """Source: https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7."""
    before = time.time_ns() // 1_000_000
    row = new_row()
    after = time.time_ns() // 1_000_000
    parsed = uuid.UUID(row)
    assert row == str(parsed)
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert before <= parsed.int >> 80 <= after
    assert unpack(refer(row, 1)) == Reference(row, 1, Stamp())


def test_later_rows_sort_behind_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL adds them at the end of the index."""
    milliseconds = [1, 255, 256, 65_535, 65_536, 2**32, 1_700_000_000_000, 1_700_000_000_001, 2**47]
    clock = iter(ms * 1_000_000 + 999_999 for ms in milliseconds)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    rows = [new_row() for _ in milliseconds]
    assert rows == sorted(rows)
    assert [uuid.UUID(row).int >> 80 for row in rows] == milliseconds


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0xA5])
def test_version_and_variant_stand_whatever_is_drawn(
    byte: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: bytes([byte] * size))
    parsed = uuid.UUID(new_row())
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_nobody_can_guess_the_id_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may notify could have others read it: 74 bits of it are drawn."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    rows = [uuid.UUID(new_row()).int for _ in range(500)]
    assert len(set(rows)) == 500
    ever, always = 0, ~0
    for row in rows:
        ever |= row
        always &= row
    assert (ever & ~always).bit_count() == 74
