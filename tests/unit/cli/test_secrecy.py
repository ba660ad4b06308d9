"""Which arguments hold a password, and where the DSN is among them."""

from __future__ import annotations

import os

import pytest

from pgnotifybus.cli import secrecy


@pytest.mark.parametrize(
    ("arguments", "dsn", "rest"),
    [
        (["listen", "a"], None, ["listen", "a"]),
        (["listen", "--dsn", "d", "a"], "d", ["listen", "a"]),
        (["listen", "a", "--dsn=d"], "d", ["listen", "a"]),
        (["x", "--dsn", "d", "--dsn=e"], "e", ["x"]),
        (["x", "--dsn=d", "--", "--dsn", "e"], "d", ["x", "--", "--dsn", "e"]),
        (["x", "--dsn"], None, ["x", "--dsn"]),
    ],
)
def test_the_dsn_is_taken_out(arguments: list[str], dsn: str | None, rest: list[str]) -> None:
    assert secrecy.split(arguments) == (dsn, rest)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p@h/x",
        "postgresql+asyncpg://u:p@h/x",
        "postgresql://u@h/x?password=p",
        "postgresql://u@h/x?p%61ssword=p",
        "host=h PASSWORD=p",
        "host=h sslpassword=p",
        "postgresql://u:p/q@h/x",
        "postgresql://u:secret",
        "u:p@h",
    ],
)
def test_it_is_seen_that_there_may_be_a_password(dsn: str) -> None:
    assert secrecy.may_hold_password(dsn)


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "postgresql://",
        "postgresql://u@h/x",
        "postgresql://h:5432/x",
        "host=h dbname=x",
        "postgresql://u@[::1]:5432/x",
        "postgresql://h1:1,h2:2/x",
    ],
)
def test_what_holds_none_stays_in_the_arguments(dsn: str) -> None:
    assert not secrecy.may_hold_password(dsn)


def test_what_was_handed_on_is_read_once_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrecy, "_handed", [])
    reader, writer = os.pipe()
    os.write(writer, b"host=\xff")
    os.close(writer)
    environ = {"PGNOTIFYBUS_DSN_FD": str(reader)}
    secrecy.take_over(environ)
    assert environ == {}
    assert secrecy.handed_dsn() == "host=\udcff"
    secrecy.take_over({"PGNOTIFYBUS_DSN_FD": "987654"})  # somebody else's variable does no harm


def test_messages_are_masked() -> None:
    text = "got (postgresql+x://u:secret@h/x) and 'password = secret' and password='se cret'"
    assert "cret" not in secrecy.masked(text)
