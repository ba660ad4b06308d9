"""`pgnotifybus notify`: send one notification. Layer: cli."""

from __future__ import annotations

from pgnotifybus.cli.outcomes import CommandFailed, UsageProblem
from pgnotifybus.cli.stdin import Stdin
from pgnotifybus.core.envelope import MAX_SPILLED_BYTES
from pgnotifybus.core.names import check_channel
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.errors import PayloadTooLarge
from pgnotifybus.links.sources import Connector
from pgnotifybus.publish.message import Message, message
from pgnotifybus.publish.notifier import send

STDIN = "-"

CONNECT_TIMEOUT = 10.0  # seconds
TIMEOUT = 10.0  # seconds that the server may take to commit


async def notify(connector: Connector, one: Message, schema: str, *, durable: bool) -> None:
    """Send one notification over a connection of its own; when it returns, it is committed.

    Args:
        connector: Where to connect.
        one: What to send.
        schema: The schema of the spill table.
        durable: Whether the commit waits for the disk.

    Raises:
        CommandFailed: If it needs the spill table, which is not there or may not be written.
        ConnectError, FatalLinkError, LinkError: If it was not sent.
        LinkLost: If it is not known whether it was sent.
    """
    side = SideLink(connector, part="notifier", connect_timeout=CONNECT_TIMEOUT, timeout=TIMEOUT)
    try:
        if not durable:
            async with side.use() as runner:
                await runner.execute("SET synchronous_commit = off")
        await send(side, one, schema)
    except PayloadTooLarge as error:
        # It was asked for rightly: what is missing is in the database.
        raise CommandFailed(str(error)) from error
    finally:
        await side.close()


def checked_message(channel: str, payload: str) -> Message:
    """The notification to send.

    Raises:
        InvalidChannel, PayloadTooLarge, UsageProblem: If it cannot be sent anywhere.
    """
    try:
        return message(channel, payload)
    except PayloadTooLarge:
        raise
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def whole_stdin() -> str:
    """All of stdin as one payload, less one line end.

    Raises:
        UsageProblem: If it is not UTF-8, or is over 16 MiB.
        CommandFailed: If it cannot be read.
    """
    data = Stdin().whole(MAX_SPILLED_BYTES + len("\r\n"))
    data = data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
    if len(data) > MAX_SPILLED_BYTES:
        raise UsageProblem(
            f"stdin has over {MAX_SPILLED_BYTES} bytes, which is the limit: send a key and let "
            "the receiver read it"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageProblem(
            f"stdin is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}"
        ) from None


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
