"""`pgnotifybus log append`: append one event. Layer: cli."""

from __future__ import annotations

from pgnotifybus.cli.notify import CONNECT_TIMEOUT, TIMEOUT
from pgnotifybus.cli.outcomes import UsageProblem
from pgnotifybus.database.queries import run
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.errors import LinkLost, PayloadTooLarge
from pgnotifybus.links.base import Connector, ServerError
from pgnotifybus.log import appending
from pgnotifybus.log.appending import New
from pgnotifybus.log.refusals import refusal


def side_of(connector: Connector) -> SideLink:
    """A connection to append over."""
    return SideLink(connector, part="appender", connect_timeout=CONNECT_TIMEOUT, timeout=TIMEOUT)


async def append(connector: Connector, event: New, schema: str) -> int:
    """Append one event over a connection of its own; when it returns, it is committed.

    Returns:
        The id of the event.

    Raises:
        SchemaMissing, SchemaError: If the log is not there, or the server refuses.
        ConnectError, FatalLinkError: If there is no connection; it was not appended.
        LinkLost: If it is not known whether it was appended.
    """
    side = side_of(connector)
    try:
        async with side.use(size=event.size) as runner:
            return await run(appending.append(schema, event), runner)
    except ServerError as error:
        raise refusal(error, schema, "append to the log") from error
    except LinkLost as error:
        raise LinkLost(f"{error}: whether the event was appended is not known") from error
    finally:
        await side.close()


def checked_event(
    channel: str, payload: str, key: str | None, headers: dict[str, str] | None
) -> New:
    """The event to append.

    Raises:
        InvalidChannel, PayloadTooLarge, UsageProblem: If it cannot be appended anywhere.
    """
    try:
        return appending.new(channel, payload, key, headers, appending.MAX_EVENT_BYTES)
    except PayloadTooLarge:
        raise
    except ValueError as error:
        raise UsageProblem(str(error)) from None
