"""An event loop whose time stands still unless everybody waits, and then jumps."""

from __future__ import annotations

import math
from typing import Final

import async_solipsism

LIMIT: Final = 20_000.0
"""Seconds after which a test fails: probes could go on for ever where nothing else happens."""


class EventLoop(async_solipsism.EventLoop):  # type: ignore[misc]  # it has no types
    """The loop of async-solipsism, with a clock that never stands still under a timer.

    The clock counts microseconds. A timer that is due in less would find it where it was, and
    code that asks the clock and waits again, as it may with any real clock, would do so for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        clock = self._selector.clock
        step = clock.advance
        ends_at = LIMIT

        def advance(seconds: float) -> None:
            nonlocal ends_at
            step(max(seconds, clock.resolution))
            if clock.time() > ends_at:
                ends_at = math.inf  # what is cancelled now may take its time
                raise TimeoutError("the test waits for what does not come")

        clock.advance = advance
