"""The cursor: a place in the event log to go on from, as a short text. Layer: log."""

from __future__ import annotations

from pgnotifybus.core.position import Instant, Position, decode, encode
from pgnotifybus.errors import InvalidCursor


class Cursor:
    """A place in the event log: everything behind it is still to be read.

    Opaque: what is in it may change from version to version, and older texts stay readable. Its
    text, `str(cursor)`, is safe in a URL and has some 40 characters, and a few more for each
    transaction that was running when it was taken. Two cursors are equal if they are the same
    place, however they came about. It knows its log: one of another database, or of a log that was
    made anew, is noticed when it is used.

    Args:
        text: What `str` gave for a cursor.

    Raises:
        InvalidCursor: If the text is none.
    """

    __slots__ = ("_position", "_start", "_text", "_until")

    _start: Position
    _until: Instant

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise InvalidCursor(f"a cursor is read from a str, not from {type(text).__name__}")
        try:
            self._position: Position | int = decode(text)
        except ValueError as error:
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise InvalidCursor(
                f"{shown!r} is no cursor of an event log: {error}. Pass `str(event.cursor)` "
                "exactly as it was"
            ) from None
        self._text: str | None = text

    @classmethod
    def at(cls, position: Position) -> Cursor:
        """The cursor of a position; for the library itself."""
        cursor = cls.__new__(cls)
        cursor._position = position
        cursor._text = None
        return cursor

    @classmethod
    def on_the_way(cls, start: Position, until: Instant, after: int) -> Cursor:
        """The cursor behind one event of many, of which few will ever be asked for."""
        cursor = cls.__new__(cls)
        cursor._position = after
        cursor._start = start
        cursor._until = until
        cursor._text = None
        return cursor

    @property
    def position(self) -> Position:
        """What the library reads from it."""
        position = self._position
        if isinstance(position, int):
            position = self._position = self._start.on_the_way(self._until, position)
        return position

    def __str__(self) -> str:
        if self._text is None:
            self._text = encode(self.position)
        return self._text

    def __repr__(self) -> str:
        return f"Cursor({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return self.position == other.position if isinstance(other, Cursor) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.position)

    def __reduce__(self) -> tuple[type[Cursor], tuple[str]]:
        return Cursor, (str(self),)
