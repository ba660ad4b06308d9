"""`pgnotifybus notify`: send one notification. Layer: cli."""

from __future__ import annotations

import sys
from typing import BinaryIO

from pgnotifybus.cli.outcomes import UsageProblem
from pgnotifybus.core.names import check_channel, check_payload
from pgnotifybus.errors import PayloadTooLarge
from pgnotifybus.links.sources import Connector
from pgnotifybus.publish import Publisher

STDIN = "-"

_CONNECT_TIMEOUT = 10.0  # seconds
_TIMEOUT = 10.0  # seconds that the server may take to commit


async def notify(connector: Connector, channel: str, payload: str) -> None:
    """Send one notification over a connection of its own; when it returns, it is committed.

    Raises:
        ConnectError, FatalLinkError, LinkError: If it was not sent.
        LinkLost: If it is not known whether it was sent.
    """
    publisher = Publisher(connector, connect_timeout=_CONNECT_TIMEOUT, timeout=_TIMEOUT)
    try:
        await publisher.notify(channel, payload)
    finally:
        await publisher.close()


def checked_payload(argument: str, stdin: BinaryIO | None = None) -> str:
    """The payload to send: the argument, or all of stdin for `-`, less one line end.

    Args:
        argument: What the user wrote.
        stdin: Where `-` reads from; None for the process's own.

    Raises:
        UsageProblem: If it cannot be sent; the message says why.
        PayloadTooLarge: If it has over 7,999 bytes of UTF-8.
    """
    if argument == STDIN:
        data = (stdin or sys.stdin.buffer).read()
        try:
            argument = data.decode()
        except UnicodeDecodeError as error:
            raise UsageProblem(
                f"stdin is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}"
            ) from None
        argument = argument.removesuffix("\n")
    try:
        return check_payload(argument)
    except PayloadTooLarge:
        raise
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def checked_channels(names: list[str]) -> list[str]:
    """The channels, if each of them can be one.

    Raises:
        InvalidChannel: If one cannot; the message says why.
        UsageProblem: If one is a DSN, which is not repeated.
    """
    for name in names:
        if "://" in name and name.startswith("postgres"):
            raise UsageProblem("a DSN stands where a channel should: write --dsn in front of it")
        check_channel(name)
    return names
