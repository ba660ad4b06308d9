"""Payloads of a size."""

from __future__ import annotations

import base64
import random


def noise(size: int, seed: int = 22) -> str:
    """Text of so many bytes that does not shrink below three quarters of that."""
    data = random.Random(seed).randbytes(size)
    return base64.b64encode(data).decode()[:size]
