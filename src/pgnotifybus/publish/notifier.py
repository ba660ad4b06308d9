"""Sending one notification at a time over a connection of its own. Layer: publish."""

from __future__ import annotations

from pgnotifybus.database.queries import run
from pgnotifybus.database.sidelink import SideLink
from pgnotifybus.errors import LinkError, LinkLost
from pgnotifybus.links.base import ServerError
from pgnotifybus.publish.message import Message
from pgnotifybus.publish.statements import QUEUE_FULL, make_room, send_one


async def send(side: SideLink, message: Message, schema: str) -> None:
    """Send one message; when this returns, the server has committed it.

    Raises:
        PayloadTooLarge: If it does not fit, and there is no spill table that may be written.
        ConnectError, FatalLinkError: If there is no connection; nothing was sent.
        Closed: If the connection was closed before; nothing was sent.
        LinkLost: If the connection was lost while sending: whether it was sent is not known.
        LinkError: If the server refused, for instance because its notification queue is full;
            nothing was sent.

    Cancel safety: a message that is being sent may be sent or not; none is sent twice.
    """
    try:
        async with side.use(size=message.size) as runner:
            try:
                await run(send_one(message, schema), runner)
            except ServerError as error:
                if error.sqlstate != QUEUE_FULL:
                    raise
                await runner.fetch(make_room().sql)
                await run(send_one(message, schema), runner)
    except ServerError as error:
        raise LinkError(f"the server refused the notification: {error}") from error
    except LinkLost as error:
        raise LinkLost(f"{error}: whether the notification was sent is not known") from error
