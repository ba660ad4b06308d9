"""A channel with a type: values of it are sent, and values of it are received.
Layer: over core.

::

    orders = Channel("orders", Order)     # a constant of your module: no I/O, nothing to close
    text = orders.encode(Order(7))        # '{"id":7}'
    orders.decode(text)                   # Order(id=7)

What travels is JSON. Types that come from pydantic, or contain one that does, are handled by
pydantic, all others by msgspec, and a channel without a type by the standard library. Neither
package is imported before a channel needs it.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from pgnotifybus.core.names import check_channel
from pgnotifybus.errors import Malformed, MissingExtra

__all__ = ["Channel"]

T = TypeVar("T")

MAX_REASON: Final = 200
"""The longest reason of a `Malformed`, in characters: a decoder may quote keys of the payload."""

# The texts in which a decoder quotes more of the payload than a key.
_MSGSPEC_QUOTES: Final = re.compile(
    r"^(Invalid (?:enum )?value) .*?( - at (?:`\w+` in )?`\$[^`]*`)?$"
)
_PYDANTIC_QUOTES: Final = {"union_tag_invalid": "Input tag is none of the expected ones"}

_OF_PYDANTIC: Final = {"__pydantic_validator__", "__get_pydantic_core_schema__"}
"""What marks a class that pydantic has made, or that is made for it."""


class Channel(Generic[T]):
    """The name of a channel and the type of what is sent on it.

    It is a value: it cannot be changed, two of the same name and type are equal, and making one
    does no I/O. It promises that what `encode` returns can be sent, and that `decode` returns the
    type or raises `Malformed`. It does not promise that others send the same type on that channel.

    Floats that are not finite become null within a typed value, as msgspec and pydantic write them.

    Args:
        name: The channel: 1 to 63 bytes of UTF-8, kept exactly.
        type: A msgspec Struct, dataclass, TypedDict, attrs class, pydantic model, or whatever else
            msgspec or pydantic takes, as `list[Order]` or `A | B`. Without it, values are plain
            JSON: dict, list, str, int, float, bool and None.

    Raises:
        InvalidChannel: If PostgreSQL cannot have a channel of this name.
        TypeError: If the type cannot be decoded from JSON; the message says which part of it.
        MissingExtra: If the package for this type is not installed; the message is the pip command.
    """

    __match_args__ = ("name", "type")
    __slots__ = ("__weakref__", "_class", "_codec", "_name", "_type")

    @overload
    def __init__(self: Channel[Any], name: str) -> None: ...
    @overload
    def __init__(self, name: str, type: builtins.type[T]) -> None: ...
    @overload
    def __init__(self: Channel[Any], name: str, type: Any) -> None: ...
    def __init__(self, name: str, type: Any = Any) -> None:  # noqa: A002 - as users write it
        self._name = check_channel(name)
        self._type = type
        self._class = _class_of(type)
        self._codec: _Codec | None = None
        # Forward references, to what the user's module defines further down, wait for first use.
        with contextlib.suppress(NameError):
            self._codec = _choose(type)

    @property
    def name(self) -> str:
        """The name of the channel."""
        return self._name

    @property
    def type(self) -> Any:
        """The type of its values; `typing.Any` if it was made without one."""
        return self._type

    def __repr__(self) -> str:
        shown = "" if self._type is Any else f", {_describe(self._type)}"
        return f"{builtins.type(self).__name__}({self._name!r}{shown})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Channel):
            return NotImplemented
        return (self._name, self._type) == (other._name, other._type)

    def __hash__(self) -> int:
        return hash(self._name)  # not the type: an Annotated one need not be hashable

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.type(self), (self._name, self._type)

    def encode(self, value: T) -> str:
        """The value as compact JSON text, which PostgreSQL can store.

        It checks what class the value is of, not what is inside: a wrong field shows at receivers.

        Args:
            value: An instance of the channel's type. The size of the text is not limited here.

        Raises:
            TypeError: If the value is not of the type, or holds something that JSON cannot.
            ValueError: If it holds a lone surrogate, or itself; in plain JSON also NaN or infinity,
                and in what pydantic handles all that JSON cannot.
            MissingExtra: If it shows only now, at first use, that the package is not installed.
        """
        if self._class is not None and not isinstance(value, self._class):
            raise TypeError(
                f"channel {self._name!r} takes {_describe(self._type)}, "
                f"not {_describe(builtins.type(value))}"
            )
        codec = self._codec or self._resolve()
        try:
            text = codec.encode(value)
            if "\0" in text:  # msgspec.Raw goes out as it is
                raise ValueError("the JSON text has a NUL character")
        except Exception as error:
            wrong_value = isinstance(error, ValueError | RecursionError)
            raise (ValueError if wrong_value else TypeError)(
                f"the value cannot be sent on channel {self._name!r}: {_words(error)}"
            ) from error
        return text

    def decode(self, payload: str) -> T:
        """The value that a payload stands for.

        Args:
            payload: Text as it has arrived, of any size.

        Raises:
            Malformed: If the payload is not JSON, or not of the type, or if code of the type's own
                (a validator, `__post_init__`) raises; the cause is chained. Go on receiving.
        """
        codec = self._codec
        try:
            if codec is None:
                codec = self._resolve()
            value: T = codec.decode(payload)
        except Exception as error:
            reason = _words(error) if codec is None else codec.explain(error)
            raise Malformed(self._name, payload, _one_line(reason)) from error
        return value

    def _resolve(self) -> _Codec:
        """Make the codec at first use, where a forward reference has put it off."""
        try:
            self._codec = _choose(self._type)
        except NameError as error:
            raise TypeError(
                f"the type {_describe(self._type)} of channel {self._name!r} refers to what is "
                f"not defined: {error}"
            ) from error
        return self._codec


# -- codecs ---------------------------------------------------------------------------------------


class _Codec(NamedTuple):
    encode: Callable[[Any], str]
    decode: Callable[[str], Any]
    explain: Callable[[Exception], str]
    """Why it did not decode, in few words of which as few as possible are the payload's."""


def _choose(hint: Any) -> _Codec:
    """The codec for a type.

    Raises:
        TypeError: If its package cannot handle it.
        NameError: If it refers to a name that is not defined, or not yet.
        MissingExtra: If its package is not installed.
    """
    if hint is Any:
        return _plain()
    make = _pydantic if _is_pydantic(hint, []) else _msgspec
    try:
        return make(hint)
    except (NameError, MissingExtra):
        raise
    except Exception as error:
        raise TypeError(f"a channel cannot be of type {_describe(hint)}: {error}") from error


def _plain() -> _Codec:
    # Not ASCII only: the payload is limited in bytes, and "é" has 2 of them, but "\u00e9" has 6.
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def encode(value: Any) -> str:
        return _encodable(encoder.encode(value))

    def decode(payload: str) -> Any:
        value = decoder.decode(_encodable(payload))
        if r"\ud" in payload or r"\uD" in payload:
            _encodable(encoder.encode(value))  # a lone surrogate may be written as an escape, too
        return value

    return _Codec(encode, decode, lambda error: _words(error, json.JSONDecodeError))


def _msgspec(hint: Any) -> _Codec:
    try:
        import msgspec
        from msgspec import inspect
    except ImportError as error:
        raise MissingExtra("msgspec") from error
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(hint)
    # A class that msgspec does not know it would take, and then refuse every payload. Before 0.22
    # it could not describe a Literal of str and int, which it decodes.
    info = None
    with contextlib.suppress(TypeError):
        info = inspect.type_info(hint)
    for part in _parts(info, (inspect.Type, inspect.Field), []):
        if isinstance(part, inspect.CustomType) and not _may_be_json(part.cls):
            raise TypeError(f"msgspec does not support {_describe(part.cls)}")
    own = msgspec.MsgspecError
    return _Codec(
        lambda value: encoder.encode(value).decode(),
        decoder.decode,
        lambda error: _MSGSPEC_QUOTES.sub(r"\1\2", _words(error, own)),
    )


def _pydantic(hint: Any) -> _Codec:
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:
        raise MissingExtra("pydantic") from error
    adapter: TypeAdapter[Any] = TypeAdapter(hint)

    def encode(value: Any) -> str:
        # What it has to be so that `validate_json` takes it: aliases, and no computed fields.
        return adapter.dump_json(value, by_alias=True, round_trip=True).decode()

    def explain(error: Exception) -> str:
        if not isinstance(error, ValidationError):
            return _words(error)
        # Its own text would quote the input.
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return "; ".join(
            ".".join(map(str, each["loc"]))
            + ": " * bool(each["loc"])
            + _PYDANTIC_QUOTES.get(each["type"], each["msg"])
            for each in found
        )

    return _Codec(encode, adapter.validate_json, explain)


# -- what a type is -------------------------------------------------------------------------------


def _is_pydantic(hint: Any, seen: list[Any]) -> bool:
    """Whether a type is pydantic's, or contains one that is, without importing it."""
    if any(hint is one for one in seen):
        return False
    seen.append(hint)
    bases = (hint if isinstance(hint, type) else type(hint)).__mro__
    if any(
        base.__module__.partition(".")[0] == "pydantic" or _OF_PYDANTIC & vars(base).keys()
        for base in bases
    ):
        return True
    parts = [*get_args(hint), get_origin(hint), getattr(hint, "__supertype__", None)]
    # If there is something wrong with the annotations, the codec will say so.
    with contextlib.suppress(Exception):
        parts.append(getattr(hint, "__value__", None))  # of `type Orders = list[Order]`
    if dataclasses.is_dataclass(hint) or hasattr(hint, "__total__") or hasattr(hint, "_fields"):
        with contextlib.suppress(Exception):
            parts += get_type_hints(hint, include_extras=True).values()
    return any(_is_pydantic(part, seen) for part in parts)


def _parts(info: Any, kinds: tuple[type, ...], seen: list[Any]) -> Iterator[Any]:
    """All that a description of a type, as msgspec gives it, is made of."""
    if isinstance(info, tuple):
        for each in info:
            yield from _parts(each, kinds, seen)
    elif isinstance(info, kinds) and not any(info is one for one in seen):
        seen.append(info)  # by identity: a type may contain itself
        yield info
        for name in info.__struct_fields__:  # type: ignore[attr-defined]  # they are Structs
            yield from _parts(getattr(info, name), kinds, seen)


def _may_be_json(cls: type) -> bool:
    """Whether some value that JSON gives is of the class, as for `object`, or `Iterable`."""
    with contextlib.suppress(TypeError):
        return any(issubclass(each, cls) for each in (dict, list, str, int, float, type(None)))
    return False


def _class_of(hint: Any) -> type | tuple[Any, ...] | None:
    """The class that all values of a type are instances of, or several, if that can be asked."""
    cls = get_origin(hint) or hint
    if cls is Annotated:
        return _class_of(get_args(hint)[0])
    if cls is Union or cls is UnionType:
        classes = tuple(_class_of(part) for part in get_args(hint))
        return None if None in classes else classes
    if not isinstance(cls, type) or cls is Any:
        return None
    if cls is float:
        return (float, int)  # as type checkers have it
    if hasattr(cls, "__get_pydantic_core_schema__") and not hasattr(cls, "__pydantic_validator__"):
        return None  # it stands for another class, as AwareDatetime does for datetime
    if issubclass(cls, dict) and hasattr(cls, "__total__"):  # a TypedDict
        return dict
    return cls


# -- words ----------------------------------------------------------------------------------------


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else repr(hint)


def _words(error: Exception, *speaking: type[Exception]) -> str:
    """The text of an error, behind its class unless that is one whose texts say it all."""
    text = str(error)
    if isinstance(error, (*speaking, MissingExtra)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _one_line(text: str) -> str:
    """Few words for a log: some may be the payload's, and anybody may have sent that."""
    if len(text) > MAX_REASON:
        text = text[: MAX_REASON - 3] + "..."
    if not text.isprintable():
        text = text.encode("unicode_escape").decode()[:MAX_REASON]
    return text


def _encodable(text: str) -> str:
    if not text.isascii():
        text.encode()  # raises for lone surrogates, which json lets pass
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
