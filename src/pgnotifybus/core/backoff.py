"""How long to wait before the next attempt to connect. Layer: core.

Doubling with jitter, and a reset only once a link has proved healthy: a server that accepts and
drops connections at once would otherwise be hit at the shortest delay for ever.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The delays between attempts: `initial`, doubling up to `maximum`, each with jitter.

    The jitter is applied downwards: a delay lies between `(1 - jitter)` and 1 times its nominal
    value. A fleet that lost its server in the same moment so comes back spread out, and no delay
    is ever longer than what is documented. By default it is a half ("equal jitter"): all of it
    would spread further, but try again before a server can have restarted, and then wait for long.
    """

    __slots__ = ("_attempt", "_healthy_after", "_initial", "_jitter", "_maximum", "_random")

    def __init__(
        self,
        initial: float = 0.5,
        maximum: float = 30.0,
        *,
        jitter: float = 0.5,
        healthy_after: float = 5.0,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Describe the delays.

        Args:
            initial: The first delay, in seconds; above 0.
            maximum: The longest delay, in seconds; at least `initial`.
            jitter: Which part of a delay is left to chance, from 0 (none) to 1 (all).
            healthy_after: A link that lived this many seconds has proved healthy: the delays
                start again at `initial`.
            random: Where chance comes from: a call gives a float in [0, 1).

        Raises:
            ValueError: If a figure is outside its range.
        """
        if not 0 < initial <= maximum:
            raise ValueError(f"need 0 < initial <= maximum, not {initial} and {maximum}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be from 0 to 1, not {jitter}")
        if not healthy_after >= 0:  # so that nan is refused too
            raise ValueError(f"healthy_after must be at least 0, not {healthy_after}")
        self._initial = initial
        self._maximum = maximum
        self._jitter = jitter
        self._healthy_after = healthy_after
        self._random = random
        self._attempt = 0

    def next_delay(self) -> float:
        """The seconds to wait now; each call doubles the next one, up to the maximum."""
        # The exponent is bounded: a float overflows at 2**1024, weeks into an outage.
        nominal = min(self._initial * 2.0 ** min(self._attempt, 60), self._maximum)
        self._attempt += 1
        return nominal * (1 - self._jitter * self._random())

    def lived(self, seconds: float) -> None:
        """Take note of a link's life: if it was long enough, start over at the shortest delay."""
        if seconds >= self._healthy_after:
            self._attempt = 0
