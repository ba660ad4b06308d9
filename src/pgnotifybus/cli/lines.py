"""From the bytes of stdin to lines and their keys; no I/O. Layer: cli."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pgnotifybus.cli.outcomes import UsageProblem
from pgnotifybus.core.envelope import MAX_SPILLED_BYTES


class Line(NamedTuple):
    """One payload."""

    number: int
    """1 for the first."""
    text: str
    size: int
    """In bytes of UTF-8."""


KeyOf = Callable[[Line], str | None]
"""Tells the key of a line; None if it has none. Raises `UsageProblem` if it should have one."""


class Lines:
    """Takes bytes as they come, and gives the lines that are complete.

    A line ends with LF or CRLF, the last one also with the input. An empty line is a line.
    """

    def __init__(self) -> None:
        self._count = 0
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Line]:
        """The lines that end in these bytes; go through all of them before the next call.

        Raises:
            UsageProblem: Behind those that are good, if one is not; the message names it.
        """
        first, *others = data.split(b"\n")
        self._rest += first
        for other in others:
            line, self._rest = self._rest, bytearray(other)
            yield self._line(line.removesuffix(b"\r"))
        if len(self._rest) > MAX_SPILLED_BYTES + 1:  # one may be a CR
            raise self._too_long()

    def end(self) -> Iterator[Line]:
        """The last line, if the input has ended within one.

        Raises:
            UsageProblem: As `feed`.
        """
        if self._rest:
            line, self._rest = self._rest, bytearray()
            yield self._line(line)

    def _line(self, data: bytearray) -> Line:
        if len(data) > MAX_SPILLED_BYTES:
            raise self._too_long()
        self._count += 1
        try:
            return Line(self._count, data.decode(), len(data))
        except UnicodeDecodeError as error:
            raise bad_line(
                self._count, f"is not UTF-8: its byte {error.start} is 0x{data[error.start]:02x}"
            ) from None

    def _too_long(self) -> UsageProblem:
        return bad_line(
            self._count + 1,
            f"has over {MAX_SPILLED_BYTES} bytes, which is the limit: send a key and let the "
            "receiver read it",
        )


def no_key(line: Line) -> None:
    """Every line is sent."""


def one_key(key: str) -> KeyOf:
    """All lines have the same key."""
    return lambda line: key


def key_field(name: str) -> KeyOf:
    """The key of a line is the value of one field of the JSON object that it is."""

    def key_of(line: Line) -> str:
        try:
            value = json.loads(line.text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise bad_line(line.number, "is not a JSON object, so that it has no key")
        if name not in value:
            raise bad_line(line.number, f"has no field {name!r}, which should be its key")
        # One that is null would make lines replace each other that have nothing in common.
        if not isinstance(value[name], str | int | float):
            raise bad_line(
                line.number, f"has no string, number or boolean as field {name!r}, its key"
            )
        return json.dumps(value[name])  # in which "1" and 1 differ

    return key_of


def bad_line(number: int, what: str) -> UsageProblem:
    """The error for a line that cannot be sent."""
    return UsageProblem(f"line {number} of stdin {what}")
