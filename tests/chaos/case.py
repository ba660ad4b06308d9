"""One fault: what is done, what ends it, and what must be so meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from chaos.world import World
from pgnotifybus.core.health import State

Step = Callable[[World], Awaitable[Any]]


async def nothing(world: World) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Case:
    """One fault."""

    title: str
    strike: Step
    mend: Step = nothing
    """What ends it; nothing, if it ends by itself."""
    prepare: Step = nothing
    """What is done before the bus is started."""
    noticed_by: Literal["kernel", "probe", "nobody"] = "kernel"
    """What tells the bus; nobody, where nothing is lost."""
    quiet: bool = False
    """Whether nothing is sent meanwhile."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of a server of its own."""
    needs_pgbouncer: bool = False
    channels: int = 0
    """How many more channels of run time there are."""
    receivers: int = 0
    """How many more receivers of one channel there are."""
    meanwhile: Step = nothing
    """What must be so before it is mended."""
    says: tuple[State, ...] = ("down",)
    """How the bus may say that it is meanwhile."""
    afterwards: Step = nothing
    """What must be so when the link is up again."""
    for_good: bool = False
    """Whether nothing mends it."""

    @property
    def mends_itself(self) -> bool:
        """Whether nothing needs to be done for it to end."""
        return self.mend is nothing
