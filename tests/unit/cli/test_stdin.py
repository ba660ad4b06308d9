"""Stdin is read as it comes, whatever it is, and nothing is left in the event loop."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from pgnotifybus.cli.outcomes import CommandFailed, UsageProblem
from pgnotifybus.cli.stdin import Stdin


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[bytes]]:
    """The end to write to of a pipe that is stdin."""
    theirs, ours = os.pipe()
    with os.fdopen(theirs) as stdin, os.fdopen(ours, "wb", buffering=0) as writer:
        monkeypatch.setattr("sys.stdin", stdin)
        yield writer


async def test_a_pipe_is_read_piece_by_piece_to_its_end(pipe: IO[bytes]) -> None:
    stdin = Stdin()
    for piece in (b"a", b"b\nc", b"\xff"):
        pipe.write(piece)
        assert await stdin.read() == piece
    pipe.close()
    assert await stdin.read() == b""


async def test_between_two_pieces_the_loop_watches_nothing(pipe: IO[bytes]) -> None:
    """What is not read while the server is away would have it run in circles."""
    stdin = Stdin()
    pipe.write(b"a")
    await stdin.read()
    pipe.write(b"b")
    assert not asyncio.get_running_loop().remove_reader(stdin._fd)


async def test_a_cancelled_read_loses_nothing(pipe: IO[bytes]) -> None:
    stdin = Stdin()
    reading = asyncio.create_task(stdin.read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not asyncio.get_running_loop().remove_reader(stdin._fd)
    pipe.write(b"a")
    assert await stdin.read() == b"a"


async def test_what_others_have_taken_is_waited_for_again(
    pipe: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who shares stdin may have made it one that does not block, and may have been quicker."""
    stdin = Stdin()
    os.set_blocking(stdin._fd, False)
    read = os.read
    taken = asyncio.Event()

    def read_behind_others(fd: int, size: int) -> bytes:
        if not taken.is_set():
            assert read(fd, size) == b"theirs"
            taken.set()
        return read(fd, size)

    monkeypatch.setattr(os, "read", read_behind_others)
    reading = asyncio.create_task(stdin.read())
    pipe.write(b"theirs")
    await taken.wait()
    pipe.write(b"ours")
    assert await reading == b"ours"


async def test_what_the_loop_cannot_wait_for_is_read_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 100_000)
    for name, size in ((path, 100_000), (Path(os.devnull), 0)):
        with name.open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            stdin = Stdin()
            pieces = [await stdin.read() for _ in range(3)]
        assert len(b"".join(pieces)) == size
        assert pieces[-1] == b""


async def test_a_stdin_without_a_descriptor_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    stdin = Stdin()
    assert [await stdin.read(), await stdin.read()] == [b"abc", b""]


def test_a_closed_one_is_bad_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageProblem, match="stdin is closed"):
        Stdin()


async def test_one_that_cannot_be_read_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.FileIO(file.fileno(), closefd=False)))
        stdin = Stdin()
        with pytest.raises(CommandFailed, match="cannot read stdin: Bad file descriptor"):
            await stdin.read()


def test_the_whole_is_one_byte_more_than_the_most_if_there_is_more(pipe: IO[bytes]) -> None:
    pipe.write(b"abcdef")
    pipe.close()
    assert Stdin().whole(3) == b"abcd"
    assert Stdin().whole(3) == b"ef"
