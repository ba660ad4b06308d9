"""Which DSN counts, and which one is refused."""

from __future__ import annotations

import pytest

from pgnotifybus.cli.dsn import checked, chosen, for_psycopg
from pgnotifybus.cli.outcomes import UsageProblem

URL = "postgresql://u@h/x"


def test_the_option_counts_first_then_the_url_then_libpqs_variables() -> None:
    everything = {"DATABASE_URL": "postgresql://e/x", "PGHOST": "p"}
    assert chosen(URL, everything) == URL
    assert chosen(None, everything) == "postgresql://e/x"
    assert chosen(None, {"PGHOST": "p"}) == ""
    assert chosen(None, {"DATABASE_URL": "", "PGSERVICE": "s"}) == ""
    assert chosen(None, {"PGUSER": "u", "PGPASSWORD": "p", "PGHOST": ""}) is None
    assert chosen(None, {}) is None


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u@h/x", "postgresql://u@h/x"),
        ("postgresql+psycopg2://h/x", "postgresql://h/x"),
        ("postgresql+asyncpg://h/x", "postgresql+asyncpg://h/x"),
    ],
)
def test_sqlalchemys_spelling_is_understood(given: str, used: str) -> None:
    assert checked(given, "--dsn") == used
    assert for_psycopg(checked(given, "--dsn")) == used.replace("+asyncpg", "")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://",
        "postgresql:///x",
        "postgresql://h:5432",
        "postgresql://u:p%40%2F:x@h:5432/x?sslmode=require&application_name=a@b",
        "postgresql://u@[::1]:5432/x",
        "postgresql://u@h1:1,h2:2,h3/x?target_session_attrs=read-write",
        "postgresql://u@/x?host=/tmp/a:b&port=1",
        "postgresql://u@%2Ftmp%2Fx/x",
        "postgresql://u:p?q#r@h/x",
        "host=h password='a b@c'",
    ],
)
def test_what_libpq_takes_is_taken(dsn: str) -> None:
    assert checked(dsn, "--dsn") == dsn


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:se/cret@h/x",
        "postgresql://u:12/secret@h/x",
        "postgresql://u:se@cret@h/x",
        "postgresql://u:secret",
        "postgresql://u:p@h:secret/x",
        "postgresql://u:p@h,h2:secret/x",
        "mysql://u:secret@h/x",
        " ",
    ],
)
def test_what_would_show_a_password_is_refused(dsn: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        checked(dsn, "DATABASE_URL")
    assert "DATABASE_URL" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "cret@" not in str(refused.value)
