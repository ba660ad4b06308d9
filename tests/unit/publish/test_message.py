"""A message: checked before anything is sent, packed, and stamped with what its envelope says."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from pgnotifybus.core.envelope import NO_STAMP, Content, Stamp, unpack
from pgnotifybus.errors import InvalidChannel, PayloadTooLarge
from pgnotifybus.publish.message import Envelope, Message, message
from pgnotifybus.typed import Channel

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-00"
MIB = 1024 * 1024


class Order(msgspec.Struct):
    id: int
    name: str = ""


ORDERS = Channel("orders", Order)


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> float:
    """What time it is."""
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    return 1_700_000_000.25


# -- envelopes ------------------------------------------------------------------------------------


def test_an_envelope_that_says_nothing_is_none() -> None:
    assert Envelope().stamp() == NO_STAMP
    assert message("orders", "42", Envelope()).wire == "42"


def test_an_envelope_stamps_what_it_was_asked_to(noon: float) -> None:
    assert Envelope("bus-1").stamp() == Stamp("bus-1", None, None)
    assert Envelope(timed=True).stamp() == Stamp(None, noon, None)
    assert Envelope(traceparent=TRACE).stamp() == Stamp(None, None, TRACE)
    assert Envelope("bus-1", True, TRACE).stamp() == Stamp("bus-1", noon, TRACE)


@pytest.mark.parametrize("origin", ["", "a b", "o" * 65, "é", 7, b"bus"])
def test_a_malformed_origin_is_refused_at_once(origin: Any) -> None:
    with pytest.raises(ValueError, match="origin"):
        Envelope(origin)


@pytest.mark.parametrize("traceparent", ["", "00", TRACE.upper(), TRACE + "\n", 7, TRACE.encode()])
def test_a_malformed_traceparent_is_refused_at_once(traceparent: Any) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        Envelope(traceparent=traceparent)


def test_a_traceparent_that_is_asked_for_is_asked_at_each_message() -> None:
    answers: list[str | None] = [TRACE, None, OTHER]
    envelope = Envelope("bus-1", traceparent=lambda: answers.pop(0))
    assert len(answers) == 3, "it was asked too early"
    stamps = [message("orders", "42", envelope).stamp for _ in range(3)]
    assert stamps == [Stamp("bus-1", None, each) for each in (TRACE, None, OTHER)]


@pytest.mark.parametrize("answer", ["", "nonsense", 7])
def test_a_malformed_answer_is_refused_with_the_message(answer: Any) -> None:
    """It would make an envelope that no receiver reads: they would get it as the payload."""
    envelope = Envelope(traceparent=lambda: answer)
    with pytest.raises(ValueError, match="traceparent"):
        message("orders", "42", envelope)


def test_each_message_is_stamped_with_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.5, 2.5])
    monkeypatch.setattr(time, "time", lambda: next(times))
    envelope = Envelope(timed=True)
    assert [message("a", "b", envelope).stamp.sent_at for _ in range(2)] == [1.5, 2.5]


def test_envelopes_are_values() -> None:
    assert Envelope("a", True, TRACE) == Envelope("a", True, TRACE)
    assert hash(Envelope("a")) == hash(Envelope("a"))
    with pytest.raises(AttributeError):
        Envelope("a").origin = "b"  # type: ignore[misc]


# -- messages -------------------------------------------------------------------------------------


def test_a_message_is_as_the_receiver_will_get_it() -> None:
    assert message("orders", "é") == Message("orders", "é", 2, "é", NO_STAMP)
    assert message("orders", "") == Message("orders", "", 0, "", NO_STAMP)
    assert message("Mixed Case", "\x01") == Message(
        "Mixed Case", "\x01", 1, "\x01pgnb1\x02\x01", NO_STAMP
    )


def test_a_message_of_a_typed_channel_is_encoded() -> None:
    assert message(ORDERS, Order(7, "é")) == Message(
        "orders", '{"id":7,"name":"é"}', 20, '{"id":7,"name":"é"}', NO_STAMP
    )
    assert message(Channel("jobs"), None).payload == "null"


def test_a_message_is_packed_with_its_stamp(noon: float) -> None:
    packed = message(ORDERS, Order(7), Envelope("bus-1", True, TRACE))
    assert packed.stamp == Stamp("bus-1", noon, TRACE)
    assert packed.wire is not None
    assert unpack(packed.wire) == Content('{"id":7,"name":""}', packed.stamp)
    assert packed.size == len(packed.payload)


@pytest.mark.parametrize("channel", ["", "x" * 64, "a\0b", "\ud800", None, 7, b"orders"])
def test_a_channel_that_cannot_be_one_is_refused(channel: Any) -> None:
    """Trap 22: pg_notify would fail, in the user's transaction."""
    with pytest.raises(InvalidChannel):
        message(channel, "42")


@pytest.mark.parametrize("payload", [None, 42, b"42", ["42"], Order(1)])
def test_a_payload_that_is_no_str_is_refused_on_a_channel_by_name(payload: Any) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        message("orders", payload)


@pytest.mark.parametrize(("payload", "why"), [("a\0b", "NUL"), ("a\ud800", "lone surrogate")])
def test_a_payload_that_postgresql_cannot_store_is_refused(payload: str, why: str) -> None:
    """Trap 22."""
    with pytest.raises(ValueError, match=why):
        message("orders", payload)


@pytest.mark.parametrize("value", [None, "42", {"id": 1}, ORDERS])
def test_a_value_of_another_class_is_refused_on_a_typed_channel(value: Any) -> None:
    with pytest.raises(TypeError, match="takes Order"):
        message(ORDERS, value)


def test_a_value_with_a_lone_surrogate_is_refused_on_a_typed_channel() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        message(ORDERS, Order(1, "\ud800"))


@pytest.mark.parametrize("unit", ["x", "日"])
def test_a_payload_over_16_mib_is_refused(unit: str) -> None:
    """Trap 22: in bytes, not in characters."""
    size = len(unit.encode())
    largest = unit * (16 * MIB // size)
    assert message("orders", largest).size == 16 * MIB // size * size
    with pytest.raises(PayloadTooLarge) as caught:
        message("orders", largest + unit)
    assert caught.value.limit == 16 * MIB
    assert caught.value.size == len((largest + unit).encode())
    assert "send a key" in str(caught.value)


def test_a_typed_value_over_16_mib_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        message(ORDERS, Order(1, "x" * 16 * MIB))


def test_a_payload_that_does_not_fit_is_left_to_the_spill_table() -> None:
    large = message("orders", "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(9_000)))
    assert large.wire is None
    assert large.size == 27_000


@pytest.mark.parametrize("envelope", ["bus-1", {"origin": "bus-1"}, Stamp("bus-1")])
def test_what_is_no_envelope_is_refused(envelope: Any) -> None:
    with pytest.raises(TypeError, match="must be an Envelope"):
        message("orders", "42", envelope)
