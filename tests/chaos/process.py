"""What is done to the process that the bus is in."""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from typing import Final

from chaos.world import World
from pgnotifybus import PgNotifyBusError
from pgnotifybus.supervision import Timing

_PROBES: Final = ("probe_interval", "probe_timeout")


async def block(world: World) -> None:
    """For longer than a question and its answer may take: with the defaults, 10 s."""
    timing = Timing(**{name: world.options[name] for name in _PROBES if name in world.options})
    assert timing.probe_interval is not None
    time.sleep(timing.probe_interval + timing.probe_timeout + 1)  # noqa: ASYNC251 - the fault


async def change_the_clock(world: World) -> None:
    """A day ahead, and a day back."""
    now = time.time
    world.stack.callback(setattr, time, "time", now)

    def jump(seconds: float) -> None:
        setattr(time, "time", lambda: now() + seconds)  # noqa: B010 - the fault

    for seconds in (86_400, -86_400):
        jump(seconds)
        await world.settle()


async def fork(world: World) -> None:
    """Trap 19, as with gunicorn's preload: the child is refused, and harms nobody."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # that is why
        child = os.fork()
    if child == 0:
        status = 1
        try:
            world.bus.subscribe("a")
        except PgNotifyBusError:
            status = 0
        finally:
            os._exit(status)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
