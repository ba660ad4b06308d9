"""What `pgnotifybus schema install` is told, understood."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pgnotifybus.cli.outcomes import UsageProblem
from pgnotifybus.cli.schema import Kept, parsed_kept, parsed_size


def test_what_is_to_be_kept_is_understood() -> None:
    assert parsed_kept(None, None, None, None) == Kept()
    assert parsed_kept("15m", "7d", "10GB", "64kB") == Kept(
        timedelta(minutes=15), timedelta(days=7), 10 * 1024**3, 64 * 1024
    )
    assert parsed_kept(None, "forever", "unlimited", None) == Kept(None, "forever", "unlimited")


@pytest.mark.parametrize(
    ("text", "size"),
    [("7", 7), ("7B", 7), ("2kB", 2048), ("3MB", 3 * 1024**2), ("1TB", 1024**4)],
)
def test_sizes_are_as_postgresql_counts_them(text: str, size: int) -> None:
    assert parsed_size(text, "--event-limit") == size


@pytest.mark.parametrize("text", ["", "GB", "1.5GB", "-1", "10 GB", "10gb", "9" * 19])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageProblem, match="--event-limit must look like 64kB, 500MB or 10GB, not"):
        parsed_size(text, "--event-limit")


def test_other_times_are_refused() -> None:
    with pytest.raises(UsageProblem, match=r"--event-retention must look like .* or forever"):
        parsed_kept(None, "for ever", None, None)
    with pytest.raises(UsageProblem, match=r"--event-size must look like .* or be unlimited"):
        parsed_kept(None, None, "forever", None)
    with pytest.raises(UsageProblem, match="--event-limit must look like"):
        parsed_kept(None, None, None, "unlimited")
