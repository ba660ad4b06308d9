"""What a DSN in URI form must look like, before any driver sees it. Layer: core.

Drivers read a DSN whose password holds an unquoted @ or / each in its own way, and then name a
part of it in an error, as a host or a port. So such a DSN is refused here, and nothing of it is
repeated.
"""

from __future__ import annotations

import re
from typing import Final

MALFORMED: Final = (
    "write postgresql://user:password@host:port/database, with special characters in the user and "
    "password percent-encoded (@ is %40, / is %2F)"
)

_PORT: Final = r"(:\d*)?"
_HOST: Final = rf"(\[[0-9A-Fa-f:.%]*\]|[^\[\]:@,]*){_PORT}"


def take_apart(dsn: str) -> tuple[str, str | None]:
    """The DSN as libpq spells it, and the driver that it names in SQLAlchemy's spelling.

    What is no URI is passed on as it is: libpq itself takes `host=... dbname=...` apart.

    Raises:
        ValueError: If it is malformed or of another kind of database; the message repeats nothing
            but the scheme.
    """
    found = re.match(r"([A-Za-z][\w.-]*)(?:\+(\w+))?://", dsn)
    if found is None:
        return dsn, None
    scheme, rest = found[1].lower(), dsn[found.end() :]
    if scheme not in ("postgresql", "postgres"):
        raise ValueError(f"the DSN begins with {scheme}:// and not postgresql://")
    # As libpq does it: the user's part reaches to the first @ in front of any slash.
    user = re.match(r"[^@/]*@", rest)
    start = user.end() if user else 0
    end = start + len(rest[start:].partition("?")[0].partition("/")[0])
    path = rest[end:].partition("?")[0]
    hosts = rest[:end].rpartition("@")[2]
    if rest[:end].count("@") > 1 or "@" in path or not re.fullmatch(rf"{_HOST}(,{_HOST})*", hosts):
        raise ValueError(f"the DSN is malformed: {MALFORMED}")
    return f"postgresql://{rest}", found[2]
