"""The code blocks of a Markdown page, and how to run them as a reader would.

A Python block with `asyncio.run(` in it is a program and is run as it stands. Any other Python
block is a piece of one: its imports stand at the top, the rest of it inside
`async with PgNotifyBus(..., ["orders"]) as bus:`, as the page says. One with `def test_` in it is a
file of tests, which pytest runs. Each is run in a process of its
own, on a fresh database in which the `sql` blocks of the page have been executed; the only change
is the place of the server.

A `text` block right behind it is what it prints, line by line, other lines between them aside.
The program must then end by itself, with exit code 0 and nothing on stderr.

An HTML comment in front of a block says what others do meanwhile, one step for each printed line::

    <!-- test:
    notify orders 42
    kill
    sql UPDATE orders SET state = 'sent'
    interrupt
    -->

`notify` and `sql` are done again and again until the line is printed, for the program may not
listen yet; `kill` terminates the bus's backend once; `-` does nothing. `interrupt`, at the end,
presses Ctrl-C: for a program that runs until then.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTED = "://localhost/shop"
"""The server of every example."""

_PIECE = """\
import asyncio

from pgnotifybus import PgNotifyBus
{imports}

async def main() -> None:
    async with PgNotifyBus("postgresql://localhost/shop", ["orders"]) as bus:
{piece}

asyncio.run(main())
"""

_IMPORT = re.compile(r"^(?:from|import) .*\n", re.MULTILINE)

_FENCE = re.compile(
    r"^(?:<!-- test:(?P<steps>.*?)-->\n)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    code: str
    steps: tuple[str, ...]
    """What others do, in front of each line of output."""
    output: tuple[str, ...]
    interrupted: bool
    """Whether Ctrl-C ends it."""

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def is_tests(self) -> bool:
        """Whether it is a file for pytest."""
        return "def test_" in self.code

    def program(self, dsn: str) -> str:
        """The whole program, for a real server."""
        code = self.code
        if "asyncio.run(" not in code and not self.is_tests:
            imports = "".join(_IMPORT.findall(code))
            piece = textwrap.indent(_IMPORT.sub("", code), " " * 8)
            code = _PIECE.format(imports=imports, piece=piece)
        return code.replace(DOCUMENTED, dsn.removeprefix("postgresql"))


def pages() -> list[Path]:
    """The pages that describe the library."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*/*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = page.read_text()
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        steps = (match["steps"] or "").strip().splitlines()
        interrupted = steps[-1:] == ["interrupt"]
        found.append(
            Block(
                page=str(page.relative_to(ROOT)),
                line=text.count("\n", 0, match.start("language")) + 1,
                language=match["language"],
                code=match["code"],
                steps=tuple(steps[:-1] if interrupted else steps),
                output=tuple((match["output"] or "").splitlines()),
                interrupted=interrupted,
            )
        )
    return found


def links(page: Path) -> list[str]:
    """Where the links of a page lead that stay in the repository."""
    prose = _FENCE.sub("", page.read_text())
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page make, as repository hosts do it."""
    prose = _FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
