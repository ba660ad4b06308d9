"""Typed channels: what is encoded is decoded as the same, and all else is told for what it is."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import json
import pickle
import subprocess
import sys
import textwrap
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
)

import attrs
import msgspec
import pydantic
import pytest
import typing_extensions

from pgnotifybus.errors import (
    AuthenticationFailed,
    BehindPooler,
    BufferFull,
    Closed,
    ConnectError,
    ConnectionProblem,
    CursorExpired,
    Empty,
    EpochMismatch,
    EventLogError,
    FatalLinkError,
    InvalidChannel,
    InvalidCursor,
    Lagged,
    LinkError,
    LinkLost,
    ListenRejected,
    Malformed,
    MissingExtra,
    PayloadLost,
    PayloadTooLarge,
    PgNotifyBusError,
    PoolTooSmall,
    ProbeTimeout,
    PublishFailed,
    SchemaError,
    SchemaMissing,
    Standby,
)
from pgnotifybus.typed import MAX_REASON, Channel

T = TypeVar("T")

# -- the types of these tests ---------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Order(msgspec.Struct):
    id: int
    name: str = ""
    price: decimal.Decimal | None = None
    at: dt.datetime | None = None


class Paid(msgspec.Struct, tag=True):
    id: int


class Cancelled(msgspec.Struct, tag=True):
    id: int


class Box(msgspec.Struct, Generic[T]):
    content: T


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    id: int


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Even(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("it is odd")
        if self.number < 0:
            raise RuntimeError


@dataclasses.dataclass
class Point:
    x: int
    anything: Any = None
    color: Color = Color.RED


@dataclasses.dataclass(frozen=True)
class Pair(Generic[T]):
    first: T
    second: T


class Row(TypedDict):
    id: int
    names: list[str]


@attrs.define
class Size:
    width: int
    height: float = 1.5


class Place(NamedTuple):
    row: int
    name: str = "x"


class User(pydantic.BaseModel):
    id: int
    name: str = pydantic.Field(default="", alias="fullName")
    color: Color = Color.RED
    anything: Any = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def shout(self) -> str:
        return self.name.upper()


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


class Closed_(pydantic.BaseModel, extra="forbid"):  # noqa: N801
    id: int


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Wrap(pydantic.BaseModel, Generic[T]):
    content: T


@pydantic.dataclasses.dataclass
class Checked:
    id: int


@dataclasses.dataclass
class Mixed:
    """A plain dataclass that contains something of pydantic's."""

    user: User
    number: int = 0


@dataclasses.dataclass
class Deep:
    mixed: list[Mixed]


class Team(NamedTuple):
    lead: User


class Members(typing_extensions.TypedDict):  # pydantic asks for this one before Python 3.12
    lead: User


@dataclasses.dataclass
class Tagged(Generic[T]):
    user: User
    tag: T


@dataclasses.dataclass
class Limited:
    number: Annotated[int, pydantic.Field(gt=3)]


class Cents:
    """A type of somebody else's that knows pydantic: its values are plain ints."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler(int)


Age = NewType("Age", int)
Boss = NewType("Boss", User)
Users = typing_extensions.TypeAliasType("Users", list[User])  # `type Users = list[User]`
Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]

NOON = dt.datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=dt.UTC)
ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")

VALUES: list[tuple[Any, Any]] = [
    (Order, Order(7, "é😀\n\0\"'", decimal.Decimal("1.10"), NOON)),
    (Point, Point(1, {"a": [None, True, 1.5]}, Color.BLUE)),
    (Row, {"id": 1, "names": ["a", "b"]}),
    (Size, Size(2)),
    (Place, Place(3, "y")),
    (Tree, Tree([Tree(), Tree([Tree()])])),
    (User, User(id=1, fullName="Ann", color=Color.BLUE, anything=[1])),
    (Numbers, Numbers([1, 2])),
    (Checked, Checked(5)),
    (Mixed, Mixed(User(id=1))),
    (Deep, Deep([Mixed(User(id=1))])),
    (Team, Team(User(id=1))),
    (Members, {"lead": User(id=1)}),
    (Tagged[int], Tagged(User(id=1), 2)),
    (Limited, Limited(4)),
    (Boss, User(id=1)),
    (Users, [User(id=1)]),
    (Wrap[int], Wrap[int](content=1)),
    (Box[int], Box(1)),
    (Pair[Color], Pair(Color.RED, Color.BLUE)),
    (list[Order], [Order(1), Order(2)]),
    (list[User], [User(id=1), User(id=2)]),
    (dict[str, User], {"a": User(id=1)}),
    (dict[str, Order], {"a": Order(1)}),
    (list[Mixed], [Mixed(User(id=1))]),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (Paid | Cancelled, Cancelled(1)),
    (Cat | Dog, Dog()),
    (Pet, Dog()),
    (list[Pet], [Cat(), Dog()]),
    (Order | None, None),
    (Optional[User], None),  # noqa: UP045 - as older code has it
    (int | str, "x"),
    (Annotated[int, msgspec.Meta(gt=3)], 4),
    (Annotated[int, pydantic.Field(gt=3)], 4),
    (Annotated[Order, "with a note"], Order(1)),
    (Age, 7),
    (Color, Color.RED),
    (Level, Level.LOW),
    (Literal["a", 1], 1),
    (NOON.__class__, NOON),
    (dt.date, NOON.date()),
    (dt.timedelta, dt.timedelta(hours=1)),
    (decimal.Decimal, decimal.Decimal("0.10")),
    (uuid.UUID, ID),
    (bytes, b"\0\xff"),
    (int, 2**63),
    (int, -(10**30)),
    (float, 1.5),
    (bool, True),
    (str, ""),
    (type(None), None),
    (None, None),
    (object, {"a": 1}),
    (Iterable[int], [1, 2]),
    (pydantic.AwareDatetime, NOON),
    (pydantic.IPvAnyAddress, pydantic.TypeAdapter(pydantic.IPvAnyAddress).validate_python("::1")),
    (pydantic.AnyUrl, pydantic.AnyUrl("http://a.b/")),
    (pydantic.Json[list[int]], [1]),
    (list[pydantic.AwareDatetime], [NOON]),
    (Cents, 5),
    (dict[str, Cents], {"a": 5}),
    (Any, {"a": [1, 2.5, "é", None, True, {}], "b": 10**30}),
    (Any, None),
]

every_value = pytest.mark.parametrize(
    ("hint", "value"), VALUES, ids=[f"{number}-{hint}" for number, (hint, _) in enumerate(VALUES)]
)


# -- there and back -------------------------------------------------------------------------------


@every_value
def test_what_is_encoded_is_decoded_as_the_same(hint: Any, value: Any) -> None:
    channel: Channel[Any] = Channel("values", hint)
    text = channel.encode(value)
    again = channel.decode(text)
    assert again == value
    assert type(again) is type(value)
    assert channel.decode(channel.encode(again)) == value  # not the same text: a set has no order


@every_value
def test_the_text_is_compact_json_that_postgresql_can_store(hint: Any, value: Any) -> None:
    """Trap 22: no NUL, and no more bytes than need be."""
    text = Channel("values", hint).encode(value)
    text.encode()
    assert "\0" not in text
    compact = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    assert len(text.encode()) <= len(compact.encode())


def test_a_channel_without_a_type_is_plain_json() -> None:
    channel = Channel("orders")
    assert channel.type is Any
    assert channel.encode({"name": "é", "n": [1, None]}) == '{"name":"é","n":[1,null]}'
    assert channel.decode(' {"name": "\\u00e9"} ') == {"name": "é"}


def test_every_decoding_gives_a_value_of_its_own() -> None:
    channel = Channel("orders", list[Order])
    text = channel.encode([Order(1)])
    first, second = channel.decode(text), channel.decode(text)
    first[0].name = "mine"
    first.append(Order(2))
    assert second == [Order(1)]


def test_what_a_computed_field_says_is_not_sent() -> None:
    """The receiver would refuse it, if its model forbids what it does not know."""
    assert "shout" not in Channel("users", User).encode(User(id=1, fullName="ann"))


def test_names_of_fields_are_those_that_the_receiver_validates() -> None:
    text = Channel("users", User).encode(User(id=1, fullName="ann"))
    assert json.loads(text)["fullName"] == "ann"


@pytest.mark.parametrize("hint", [float, list[float], Annotated[float, pydantic.Field()]])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_becomes_null_within_a_typed_value(hint: Any, value: float) -> None:
    channel: Channel[Any] = Channel("values", hint)
    assert channel.encode([value] if hint == list[float] else value) in ("null", "[null]")


# -- what cannot be sent --------------------------------------------------------------------------


def recursive() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


def deep(levels: int = 100_000) -> list[Any]:
    values: list[Any] = []
    for _ in range(levels):
        values = [values]
    return values


@pytest.fixture
def deep_list() -> Iterator[list[Any]]:
    """A list in a list in a list, taken apart afterwards: its `repr` would not end well."""
    values = deep()
    yield values
    while values:
        values = values.pop()


def with_anything(kind: str, anything: Any) -> tuple[Channel[Any], Any]:
    """A channel of each kind, and a value for it that contains this."""
    match kind:
        case "plain":
            return Channel("values"), {"anything": anything}
        case "msgspec":
            return Channel("values", Point), Point(1, anything)
        case _:
            return Channel("values", User), User(id=1, anything=anything)


every_kind = pytest.mark.parametrize("kind", ["plain", "msgspec", "pydantic"])


@every_kind
@pytest.mark.parametrize("text", ["\ud800", "ab\udfff"])
def test_a_lone_surrogate_is_refused(kind: str, text: str) -> None:
    """PostgreSQL could not store it: it would fail in the user's transaction."""
    for anything in (text, {text: 1}, [text]):
        channel, value = with_anything(kind, anything)
        with pytest.raises(ValueError, match="surrogate") as caught:
            channel.encode(value)
        str(caught.value).encode()


@every_kind
def test_a_value_that_holds_itself_is_refused(kind: str) -> None:
    channel, value = with_anything(kind, recursive())
    with pytest.raises(ValueError, match="cannot be sent on channel 'values'"):
        channel.encode(value)


@every_kind
def test_a_value_that_is_too_deep_is_refused(kind: str, deep_list: list[Any]) -> None:
    channel, value = with_anything(kind, deep_list)
    with pytest.raises(ValueError, match=r"depth|recursion"):
        channel.encode(value)


@every_kind
def test_what_json_cannot_hold_is_refused(kind: str) -> None:
    channel, value = with_anything(kind, object())
    with pytest.raises((TypeError, ValueError), match=r"cannot be sent.*object"):
        channel.encode(value)


@pytest.mark.parametrize("kind", ["plain", "msgspec"])
def test_an_int_too_long_to_be_written_is_refused(kind: str) -> None:
    channel, value = with_anything(kind, 10**5_000)
    with pytest.raises(ValueError, match="4300 digits"):
        channel.encode(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), [float("nan")]])
def test_plain_json_has_no_nan(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        Channel("values").encode(value)


@pytest.mark.parametrize("raw", [b"a\0b", b"\xff"])
def test_raw_json_that_postgresql_cannot_store_is_refused(raw: bytes) -> None:
    """msgspec puts it into the text as it is."""
    with pytest.raises(ValueError, match="cannot be sent"):
        Channel("values", Point).encode(Point(1, msgspec.Raw(raw)))


@every_kind
def test_a_nul_within_a_value_travels_as_an_escape(kind: str) -> None:
    channel, value = with_anything(kind, "a\0b")
    text = channel.encode(value)
    assert "\0" not in text
    assert channel.decode(text) == value


WRONG: list[tuple[Any, Any, str, str]] = [
    (Order, {"id": 1}, "Order", "dict"),
    (Order, Paid(1), "Order", "Paid"),
    (Order, None, "Order", "NoneType"),
    (Point, (1, 2), "Point", "tuple"),
    (Row, [("id", 1)], "Row", "list"),
    (Row, Point(1), "Row", "Point"),
    (Size, {"width": 1}, "Size", "dict"),
    (Place, (1, "x"), "Place", "tuple"),
    (User, {"id": 1}, "User", "dict"),
    (Box[int], Order(1), "Box[int]", "Order"),
    (list[Order], Order(1), "list[", "Order"),
    (list[Order], (Order(1),), "list[", "tuple"),
    (dict[str, int], [1], "dict[str, int]", "list"),
    (Color, "red", "Color", "str"),
    (int, "1", "int", "str"),
    (int, 1.0, "int", "float"),
    (float, "1", "float", "str"),
    (str, b"x", "str", "bytes"),
    (NOON.__class__, NOON.isoformat(), "datetime", "str"),
    (Paid | Cancelled, Order(1), "Cancelled", "Order"),
    (Order | None, Paid(1), "None", "Paid"),
    (float | None, "1", "float | None", "str"),
    (Optional[User], {"id": 1}, "User", "dict"),  # noqa: UP045 - as older code has it
    (Annotated[Order, "with a note"], {"id": 1}, "Order", "dict"),
    (Pet, User(id=1), "Dog", "User"),
]


@pytest.mark.parametrize(("hint", "value", "wanted", "got"), WRONG)
def test_a_value_of_another_class_is_refused_and_both_are_named(
    hint: Any, value: Any, wanted: str, got: str
) -> None:
    channel: Channel[Any] = Channel("orders", hint)
    with pytest.raises(TypeError, match="channel 'orders' takes") as caught:
        channel.encode(value)
    before, _, after = str(caught.value).partition(", not ")
    assert wanted in before
    assert after == got


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, 1),
        (float | None, 1),
        (int, True),
        (int, Level.LOW),
        (Row, {"id": 1, "names": []}),
        (Iterable[int], (1, 2)),
        (object, 1),
        (int | list[int], [1]),
        (Literal["a"], "a"),
        (Order | Any, "anything"),
    ],
)
def test_a_value_that_a_type_checker_would_take_is_taken(hint: Any, value: Any) -> None:
    Channel("values", hint).encode(value)


# -- what does not decode -------------------------------------------------------------------------

HINTS: list[Any] = [
    Any,
    Order,
    Point,
    Row,
    Size,
    Place,
    User,
    Tree,
    Pet,
    list[Order],
    list[User],
    dict[str, int],
    Paid | Cancelled,
    int,
    float,
    str,
    Color,
    NOON.__class__,
]

NOT_JSON = [
    "",
    " ",
    "x",
    "secret",
    "{",
    '{"id":1',
    '{"id":1}}',
    '{"id":1},',
    "{'id':1}",
    '"secret',
    '"a\nb"',
    '"\\x"',
    '"\\ud800"',
    '{"\\uDFFF":1}',
    '["\\ud83d"]',
    "\0",
    '"\0"',
    "\ufeff1",
    "\ud800",
    '"\udc80"',
    "\x01pgnb1\x02x",
    "NaN",
    "[Infinity]",
    '{"id":-Infinity}',
    "01",
    "1.",
    "tru",
    "[" * 100_000,
    '{"a":' * 100_000,
    "[" * 100_000 + "]" * 100_000,
]


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_what_is_not_json_is_malformed_whatever_it_is(hint: Any) -> None:
    channel: Channel[Any] = Channel("orders", hint)
    # pydantic takes numbers that are not finite, for what is a float.
    lenient = hint in (User, Pet, list[User])
    for payload in NOT_JSON:
        if lenient and ("NaN" in payload or "Infinity" in payload):
            continue
        with pytest.raises(Malformed) as caught:
            channel.decode(payload)
        check(caught.value, payload)


def check(error: Malformed, payload: str) -> None:
    """What must be true of every `Malformed`."""
    assert error.channel == "orders"
    assert error.payload == payload
    assert 0 < len(error.reason) <= MAX_REASON
    assert error.reason.isprintable()
    assert error.__cause__ is not None
    size = len(payload.encode(errors="replace"))
    assert f"a payload of {size} bytes on channel 'orders'" in str(error)
    assert error.reason in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("hint", "payload", "reason"),
    [
        (Order, "{}", "missing required field `id`"),
        (Order, '{"id":"secret"}', "Expected `int`, got `str` - at `$.id`"),
        (Order, '{"id":1.5}', "$.id"),
        (Order, '{"id":1,"at":"secret"}', "datetime - at `$.at`"),
        (Order, '"secret"', "Expected `object`, got `str`"),
        (Order, "null", "got `null`"),
        (Order, '{"id":' + "9" * 5_000 + "}", "out of range - at `$.id`"),
        (list[Order], '[{"id":1},{"id":"secret"}]', "`$[1].id`"),
        (Point, '{"x":1,"color":"secret"}', "Invalid enum value - at `$.color`"),
        (Color, '"secret"', "Invalid enum value"),
        (Color, '"secret - at `$.x`"', "Invalid enum value"),
        (Color, "\"'secret\\n' - at\"", "Invalid enum value"),
        (Level, "77", "Invalid enum value"),
        (Literal["a"], '"secret"', "Invalid enum value"),
        (dict[Color, int], '{"secret":1}', "Invalid enum value - at `key` in `$`"),
        (Paid | Cancelled, '{"type":"secret","id":1}', "Invalid value - at `$.type`"),
        (list[Paid | Cancelled], '[{"type":"secret"}]', "Invalid value - at `$[0].type`"),
        (Row, '{"id":1}', "names"),
        (Size, '{"width":"secret"}', "$.width"),
        (Place, '["secret"]', "$[0]"),
        (int, '"secret"', "Expected `int`, got `str`"),
        (int, '{"secret":1}', "Expected `int`, got `object`"),
        (Annotated[int, msgspec.Meta(gt=3)], "1", "Expected `int` >"),
        (Annotated[str, msgspec.Meta(pattern="^x$")], '"secret"', "matching regex"),
        (bytes, '"secret!"', "base64"),
        (uuid.UUID, '"secret"', "UUID"),
        (decimal.Decimal, '"secret"', "decimal"),
        (Even, '{"number":1}', "it is odd"),
        (Even, '{"number":-2}', "RuntimeError"),
        (Any, "secret", "Expecting value: line 1 column 1"),
        (Any, "NaN", "NaN is not JSON"),
        (Any, "9" * 5_000, "4300 digits"),
        (User, "{}", "id: Field required"),
        (User, '{"id":"secret"}', "id: Input should be a valid integer"),
        (User, '{"id":1,"color":"secret"}', "color: Input should be 'red' or 'blue'"),
        (User, '"secret"', "Input should be an object"),
        (User, '{"id":' + "9" * 5_000 + "}", "out of range"),
        (list[User], '[{"id":1},{"id":"secret"}]', "1.id: Input should be a valid integer"),
        (Mixed, '{"user":{"id":"secret"}}', "user.id: "),
        (Limited, '{"number":1}', "number: Input should be greater than 3"),
        (Pet, '{"kind":"secret"}', "Input tag is none of the expected ones"),
        (list[Pet], '[{"kind":"cat"},{"kind":"secret"}]', "1: Input tag is none"),
        (Cat | Dog, '{"kind":"secret"}', "Cat.kind: "),
        (Annotated[int, pydantic.Field(gt=3)], "1", "greater than 3"),
        (pydantic.AwareDatetime, '"secret"', "datetime"),
    ],
)
def test_the_reason_says_what_is_wrong_and_where_without_the_value(
    hint: Any, payload: str, reason: str
) -> None:
    """It goes into logs, and the payload may hold what must not."""
    channel: Channel[Any] = Channel("orders", hint)
    with pytest.raises(Malformed) as caught:
        channel.decode(payload)
    check(caught.value, payload)
    assert reason in caught.value.reason


@pytest.mark.parametrize("hint", [Strict, Closed_])
def test_a_key_in_the_reason_is_cut_and_cannot_break_the_line(hint: Any) -> None:
    """Anybody may notify: a log line must not look like two, nor fill the disk."""
    channel: Channel[Any] = Channel("orders", hint)
    for key in (
        "x" * 100_000,
        "a\nERROR all is lost",
        "\x1b[31m",
        "\u202egnirts",
        "é" * 300,
        "\n" * 190,
    ):
        payload = json.dumps({"id": 1, key: 1})
        with pytest.raises(Malformed) as caught:
            channel.decode(payload)
        check(caught.value, payload)
    payload = '{"id":1,"nmae":1}'
    with pytest.raises(Malformed, match="nmae"):
        channel.decode(payload)


def test_the_reason_is_whole_up_to_its_limit_and_marked_where_it_is_cut() -> None:
    channel = Channel("orders", Strict)
    frame = len("Object contains unknown field ``")
    for extra in (-1, 0, 1):
        key = "k" * (MAX_REASON - frame + extra)
        with pytest.raises(Malformed) as caught:
            channel.decode(f'{{"id":1,"{key}":1}}')
        assert len(caught.value.reason) == min(MAX_REASON, MAX_REASON + extra)
        assert caught.value.reason.endswith("...") == (extra > 0)


def test_many_faults_of_one_payload_are_still_a_short_reason() -> None:
    channel = Channel("orders", list[User])
    with pytest.raises(Malformed) as caught:
        channel.decode(json.dumps([{}] * 10_000))
    assert len(caught.value.reason) <= MAX_REASON


def test_what_the_types_own_code_raises_is_malformed_and_chained() -> None:
    with pytest.raises(Malformed) as caught:
        Channel("orders", Even).decode('{"number":-2}')
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_escape_that_is_a_pair_is_one_character() -> None:
    """Only lone surrogates are refused: emoji are often written as escapes."""
    for hint in (Any, str):
        channel: Channel[Any] = Channel("orders", hint)
        assert channel.decode('"\\ud83d\\ude00"') == "😀"
        assert channel.decode('"\\uD83D\\uDE00"') == "😀"
    assert Channel("orders").decode(r'"\\ud800"') == r"\ud800"


# -- making one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b", 7, None])
def test_a_name_that_postgresql_cannot_have_is_refused(name: Any) -> None:
    with pytest.raises(InvalidChannel):
        Channel(name, Order)


@attrs.define
class Holder:
    """msgspec takes attrs classes, and pydantic does not."""

    user: User


@pytest.mark.parametrize(
    ("hint", "part"),
    [
        (complex, "complex"),
        (deque[complex], "complex"),
        (list[complex], "complex"),
        (dict[str, list[complex]], "complex"),
        (Box[complex], "complex"),
        (type, "type"),
        (Paid | Order, "Paid"),
        (Callable[[], int], "Callable"),
        (Holder, "User"),
        (list[Holder], "User"),
        (Mixed | Order, "Order"),
        ("Order", "Order"),
        (list["Order"], "Order"),
        (7, "7"),
        (lambda: None, "function"),
    ],
)
def test_a_type_that_cannot_be_decoded_is_refused_when_the_channel_is_made(
    hint: Any, part: str
) -> None:
    """And not when its first message arrives, at night."""
    with pytest.raises(TypeError, match="a channel cannot be of type") as caught:
        Channel("orders", hint)
    assert part in str(caught.value)


def test_it_is_a_value() -> None:
    channel = Channel("orders", Order)
    assert (channel.name, channel.type) == ("orders", Order)
    with pytest.raises(AttributeError):
        channel.name = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        channel.type = Paid  # type: ignore[misc]
    with pytest.raises(AttributeError):
        channel.other = 1  # type: ignore[attr-defined]
    match channel:
        case Channel("orders", hint):
            assert hint is Order
        case _:
            raise AssertionError


def test_two_of_the_same_name_and_type_are_equal() -> None:
    channel = Channel("orders", Order)
    assert channel == Channel("orders", Order)
    assert hash(channel) == hash(Channel("orders", Order))
    assert Channel("orders", list[Order]) == Channel("orders", list[Order])
    for other in (Channel("orders", Paid), Channel("other", Order), Channel("orders"), "orders"):
        assert channel != other
    assert len({channel, Channel("orders", Order), Channel("orders", Paid)}) == 2
    unhashable = Annotated[int, {"a": 1}]
    with pytest.raises(TypeError, match="unhashable"):
        hash(unhashable)
    assert hash(Channel("orders", unhashable)) == hash(Channel("orders", unhashable))


@pytest.mark.parametrize(
    ("channel", "shown"),
    [
        (Channel("orders", Order), "Channel('orders', Order)"),
        (Channel("orders"), "Channel('orders')"),
        (Channel("orders", list[int]), "Channel('orders', list[int])"),
        (Channel("orders", int | None), "Channel('orders', int | None)"),
        (Channel("or'ders", None), """Channel("or'ders", None)"""),
    ],
)
def test_its_repr_is_how_it_was_made(channel: Channel[Any], shown: str) -> None:
    assert repr(channel) == shown


@pytest.mark.parametrize(
    "hint", [Order, User, Any, list[Order], Order | None, Annotated[int, "with a note"]]
)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_a_copy_is_equal_and_works(hint: Any, again: Callable[[Any], Any]) -> None:
    """Processes of a pool are given channels, and constants end up in copied settings."""
    channel: Channel[Any] = Channel("orders", hint)
    copied = again(channel)
    assert copied == channel
    value = {Order: Order(1), User: User(id=1), list[Order]: []}.get(hint, 4)
    if hint == Order | None:
        value = None
    assert copied.decode(copied.encode(value)) == value


class Named(Channel[T]):
    """A subclass of the user's."""


def test_a_subclass_stays_one() -> None:
    channel = Named("orders", Order)
    assert repr(channel) == "Named('orders', Order)"
    assert type(pickle.loads(pickle.dumps(channel))) is Named
    assert Channel[Order]("orders", Order) == Channel("orders", Order)


# -- references to what is defined further down ---------------------------------------------------


def in_a_module(monkeypatch: pytest.MonkeyPatch, source: str) -> dict[str, Any]:
    """The names of a module that is only half imported."""
    module = types.ModuleType("half_imported")
    monkeypatch.setitem(sys.modules, "half_imported", module)
    run_in(module.__dict__, source)
    return module.__dict__


def run_in(names: dict[str, Any], source: str) -> None:
    exec(textwrap.dedent(source), names)


HEAD = """
from __future__ import annotations
import dataclasses, msgspec, pydantic, attrs
from typing import *
"""

OWNERS = {
    "Struct": "class Owner(msgspec.Struct):\n    pet: Animal",
    "dataclass": "@dataclasses.dataclass\nclass Owner:\n    pet: Animal",
    "attrs": "@attrs.define\nclass Owner:\n    pet: Animal",
    "TypedDict": "class Owner(TypedDict):\n    pet: Animal",
    "NamedTuple": "class Owner(NamedTuple):\n    pet: Animal",
    "pydantic": "class Owner(pydantic.BaseModel):\n    pet: Animal",
    "mixed": "@dataclasses.dataclass\nclass Owner:\n    pet: Animal",
}

every_owner = pytest.mark.parametrize("owner", OWNERS)


@every_owner
@pytest.mark.parametrize("first", ["encode", "decode"])
def test_a_type_may_refer_to_what_is_defined_further_down(
    owner: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = in_a_module(monkeypatch, HEAD + OWNERS[owner])
    channel: Channel[Any] = Channel("pets", names["Owner"])
    assert repr(channel) == "Channel('pets', Owner)"
    base = "pydantic.BaseModel" if owner in ("pydantic", "mixed") else "msgspec.Struct"
    run_in(names, f"class Animal({base}):\n    name: str")
    value = names["Owner"](pet=names["Animal"](name="Rex"))
    text = '[{"name":"Rex"}]' if owner == "NamedTuple" else '{"pet":{"name":"Rex"}}'
    if first == "encode":
        assert channel.encode(value) == text
    assert channel.decode(text) == value
    assert channel.encode(value) == text


@every_owner
def test_the_first_payload_of_such_a_type_may_be_malformed(
    owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is explained like any later one."""
    names = in_a_module(monkeypatch, HEAD + OWNERS[owner])
    channel: Channel[Any] = Channel("orders", names["Owner"])
    base = "pydantic.BaseModel" if owner in ("pydantic", "mixed") else "msgspec.Struct"
    run_in(names, f"class Animal({base}):\n    name: int")
    payload = '[{"name":"secret"}]' if owner == "NamedTuple" else '{"pet":{"name":"secret"}}'
    with pytest.raises(Malformed, match=r"Expected `int`|valid integer") as caught:
        channel.decode(payload)
    check(caught.value, payload)


@every_owner
def test_a_type_that_refers_to_what_is_never_defined_says_so_at_first_use(
    owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = in_a_module(monkeypatch, HEAD + OWNERS[owner])
    channel: Channel[Any] = Channel("orders", names["Owner"])
    make = getattr(names["Owner"], "model_construct", names["Owner"])
    value = make(pet=1)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"not (fully )?defined"):
            channel.encode(value)
        with pytest.raises(Malformed) as caught:
            channel.decode('{"pet":1}')
        check(caught.value, '{"pet":1}')
        assert "defined" in caught.value.reason


def test_a_type_that_turns_out_not_to_be_possible_says_so_at_first_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = in_a_module(monkeypatch, HEAD + OWNERS["dataclass"])
    channel: Channel[Any] = Channel("orders", names["Owner"])
    run_in(names, "class Animal:\n    pass")
    with pytest.raises(TypeError, match="cannot be of type Owner: msgspec does not support Animal"):
        channel.encode(names["Owner"](pet=1))


# -- packages that are not there ------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """From here on it cannot be imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("package", "hint"),
    [
        ("msgspec", Point),
        ("msgspec", Row),
        ("msgspec", int),
        ("msgspec", list[str]),
        ("pydantic", User),
        ("pydantic", list[User]),
        ("pydantic", Mixed),
        ("pydantic", Annotated[int, pydantic.Field(gt=3)]),
        ("pydantic", Cents),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    package: str, hint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, package)
    with pytest.raises(MissingExtra) as caught:
        Channel("orders", hint)
    assert caught.value.extra == package
    assert f"pip install 'pgnotifybus[{package}]'" in str(caught.value)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("package", "hint", "value"),
    [("msgspec", Any, [1]), ("pydantic", Any, [1]), ("msgspec", Mixed, Mixed(User(id=1)))],
)
def test_a_package_that_is_not_needed_may_be_missing(
    package: str, hint: Any, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, package)
    channel: Channel[Any] = Channel("orders", hint)
    assert channel.decode(channel.encode(value)) == value


def test_a_package_that_turns_out_to_be_missing_is_named_at_first_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = in_a_module(monkeypatch, HEAD + OWNERS["dataclass"])
    channel: Channel[Any] = Channel("orders", names["Owner"])
    run_in(names, "class Animal(msgspec.Struct):\n    name: str")
    with monkeypatch.context() as meanwhile:
        without(meanwhile, "msgspec")
        with pytest.raises(MissingExtra):
            channel.encode(names["Owner"](pet=None))
        with pytest.raises(Malformed, match=r"type: pip install 'pgnotifybus\[msgspec\]'"):
            channel.decode("{}")
    assert channel.encode(names["Owner"](pet=names["Animal"]("Rex"))) == '{"pet":{"name":"Rex"}}'


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import pgnotifybus", set()),
        ("from pgnotifybus import Channel; Channel('a').decode(Channel('a').encode([1]))", set()),
        ("from pgnotifybus import Channel; Channel('a', int).encode(1)", {"msgspec"}),
        (
            "import pydantic; from pgnotifybus import Channel;"
            "Channel('a', pydantic.create_model('M')).decode('{}')",
            {"pydantic"},
        ),
    ],
)
def test_no_package_is_imported_before_a_channel_needs_it(code: str, imported: set[str]) -> None:
    show = "import sys; print(*{'msgspec', 'pydantic', 'attrs', 'attr'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert set(done.stdout.split()) == imported


# -- the errors -----------------------------------------------------------------------------------

SECRET = '{"password":"secret"}'

ERRORS: list[PgNotifyBusError] = [
    PgNotifyBusError("why"),
    Empty("why"),
    Lagged(3),
    Closed("why"),
    PayloadLost("expired"),
    PayloadLost("unreadable"),
    Malformed("orders", SECRET, "Expected `int`"),
    InvalidChannel("why"),
    PayloadTooLarge(8_000, 7_999),
    PayloadTooLarge(8_000, 7_999, "do something else"),
    SchemaError("why"),
    EventLogError("why"),
    SchemaMissing("why"),
    InvalidCursor("why"),
    CursorExpired("why", "a cursor"),
    EpochMismatch("why"),
    BufferFull("why"),
    PublishFailed("why", [("orders", SECRET)], [("jobs", SECRET), ("jobs", "2")]),
    PublishFailed("why", (("orders", SECRET),), ()),
    PublishFailed("why", [], [("jobs", SECRET)]),
    ConnectionProblem("why"),
    ConnectionProblem("why", "what to do"),
    LinkError("why"),
    LinkLost("why", "what to do"),
    Standby("why"),
    BehindPooler("why"),
    ConnectError("why"),
    ConnectError("why", waiting_helps=True),
    LinkLost("why"),
    ProbeTimeout("why"),
    FatalLinkError("why"),
    AuthenticationFailed("why"),
    ListenRejected("why"),
    PoolTooSmall("why"),
    MissingExtra("msgspec"),
    MissingExtra("psycopg", "or name another driver"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_an_error_survives_being_copied(
    error: PgNotifyBusError, again: Callable[[Any], Any]
) -> None:
    """A pool of processes sends it home by pickle, and one that cannot be hangs the pool."""
    copied = again(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


def test_every_error_is_among_those_that_are_copied() -> None:
    def below(cls: type) -> Iterator[type]:
        yield cls
        yield from itertools.chain.from_iterable(map(below, cls.__subclasses__()))

    public = {cls for cls in below(PgNotifyBusError) if cls.__module__ == "pgnotifybus.errors"}
    assert public == {type(error) for error in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_text_of_an_error_does_not_repeat_a_payload(error: PgNotifyBusError) -> None:
    assert "secret" not in str(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_repr_of_an_error_does_not_repeat_a_payload(error: PgNotifyBusError) -> None:
    """asyncio logs it of a task that nobody awaited."""
    assert type(error).__name__ in repr(error)
    assert "secret" not in repr(error)


def test_malformed_has_all_that_is_to_be_known() -> None:
    error = Malformed("orders", "é\udc80", "Expected `int`")
    assert (error.channel, error.payload, error.reason) == ("orders", "é\udc80", "Expected `int`")
    assert "3 bytes on channel 'orders'" in str(error)
    str(error).encode()


def test_a_failed_publish_says_how_many_and_has_them() -> None:
    both = PublishFailed("the server has gone", [("a", "1"), ("a", "2")], [("b", "3")])
    assert str(both) == (
        "2 message(s) were not sent and of 1 it is not known whether they were sent: "
        "the server has gone"
    )
    assert (both.unsent, both.unknown) == ([("a", "1"), ("a", "2")], [("b", "3")])
    assert str(PublishFailed("why", [("a", "1")], [])) == "1 message(s) were not sent: why"
    unknown = PublishFailed("why", [], [("a", "1")])
    assert str(unknown) == "of 1 it is not known whether they were sent: why"


def test_a_missing_extra_is_the_command_that_brings_it() -> None:
    assert str(MissingExtra("msgspec")) == "pip install 'pgnotifybus[msgspec]'"
    assert str(MissingExtra("a", "or do b")) == "pip install 'pgnotifybus[a]'   (or do b)"


def test_a_lost_payload_says_why() -> None:
    assert "retention" in str(PayloadLost("expired"))
    assert "could not be fetched" in str(PayloadLost("unreadable"))


def test_a_payload_that_is_too_large_says_by_how_much_and_what_to_do() -> None:
    error = PayloadTooLarge(8_000, 7_999)
    assert (error.size, error.limit) == (8_000, 7_999)
    assert str(error).startswith("the payload has 8000 bytes of UTF-8, and 7999 is the limit: ")
    assert "send a key" in str(error)
    assert str(PayloadTooLarge(1, 2, "do this")).endswith(": do this")
    assert isinstance(error, ValueError)
