"""The simulation runs in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

import pytest

from simulation.virtual import EventLoop

Factory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Factory]:
    """Run each async test in virtual time; one that waits for what cannot come fails at once."""
    return {"virtual": EventLoop}


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    """A storm would log thousands of lines, and Hypothesis says what happened anyway."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
