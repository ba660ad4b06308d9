"""What the documentation shows is run as it stands, and every public name is described."""

from __future__ import annotations

import asyncio
import inspect
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

import pgnotifybus
from pgnotifybus import broadcast, observe, schema, testing, triggers, watch
from pgnotifybus.embedded import EmbeddedServer
from pgnotifybus.metrics import opentelemetry, prometheus
from support import program
from support.documents import DOCUMENTED, ROOT, Block, anchors, blocks, links, pages
from support.sql import kill_listener

TEXTS = [*pages(), *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
ALL = [block for page in TEXTS for block in blocks(page)]
PYTHON = [block for block in ALL if block.language == "python" and not block.is_tests]
TESTS = [block for block in ALL if block.language == "python" and block.is_tests]
SHELL = [block for block in ALL if block.language == "sh"]


def of(language: list[Block]) -> pytest.MarkDecorator:
    """Run a test for each of these blocks, named after their places."""
    return pytest.mark.parametrize("block", language, ids=[each.place for each in language])


# -- Python ---------------------------------------------------------------------------------------


@of(PYTHON)
def test_python(block: Block, database18: str, tmp_path: Path) -> None:
    """A fresh process prints what the page says, warns of nothing, and ends cleanly."""
    assert len(block.steps) <= len(block.output), "each step is for a line of output"
    execute(database18, *(each.code for each in ALL if is_sql_of(each, block.page)))
    path = tmp_path / "example.py"
    path.write_text(block.program(database18))
    argv = [sys.executable, "-W", "error", str(path)]
    with program.running(argv=argv, cwd=tmp_path) as running:
        for line, step in zip_longest(block.output, block.steps, fillvalue="-"):
            with doing(step, database18):
                await_line(running, line)
        if block.interrupted:
            running.signal(signal.SIGINT)
        code = running.end()
    errors = "\n".join(running.err)
    if block.interrupted and code == -signal.SIGINT:
        assert errors.endswith("\nKeyboardInterrupt"), errors
        assert not re.search("Exception ignored|never retrieved|was destroyed", errors), errors
    else:
        assert (code, errors) == (0, "")


@of(TESTS)
def test_tests(block: Block, pg18: EmbeddedServer, tmp_path: Path) -> None:
    """A file of tests passes, with the plugin as it is installed."""
    (tmp_path / "test_example.py").write_text(block.code)
    options = ["-q", "-W", "error", "-p", "no:cacheprovider"]
    # pytest-asyncio warns of a default that will change, where it is not said.
    options += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        env=program.clean_environment(PGNOTIFYBUS_TEST_DSN=pg18.dsn),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{block.code.count('def test_')} passed" in done.stdout


def await_line(running: program.Program, line: str) -> None:
    """Wait until a program prints a line; if it ends without, say what it says of that."""
    try:
        running.until(lambda printed: printed == line)
    except AssertionError:
        running.end()
        pytest.fail(f"it never prints {line!r}:\n" + "\n".join([*running.out, *running.err]))


def is_sql_of(block: Block, page: str) -> bool:
    return block.language == "sql" and block.page == page


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for each in statements:
            connection.execute(each.encode())


@contextmanager
def doing(step: str, dsn: str) -> Iterator[None]:
    """Take a step as often as is needed while the body waits for what comes of it."""
    verb, _, rest = step.partition(" ")
    over = threading.Event()

    def repeat() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while True:
                match verb:
                    case "notify":
                        channel, payload = rest.split(" ", 1)
                        connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))
                    case "sql":
                        connection.execute(rest.encode())
                    case _:
                        raise ValueError(f"there is no step {step!r}")
                if over.wait(0.02):
                    return

    if verb == "-":
        yield
    elif verb == "kill":
        while asyncio.run(kill_listener(dsn, asked=True)) == 0:  # it may not be up yet
            pass
        yield
    else:
        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


# -- the shell ------------------------------------------------------------------------------------


@of(SHELL)
def test_shell(block: Block, database18: str) -> None:
    """Commands of ours are run; of `make` and `pip`, what they name exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    env = {"DATABASE_URL": database18, "PYTHONWARNINGS": "error"}
    execute(database18, *(each.code for each in ALL if is_sql_of(each, block.page)))
    listening: list[tuple[str, program.Program]] = []
    with ExitStack() as stack:
        for line in block.code.splitlines():
            words = shlex.split(line, comments=True)
            where = f"{block.place}: {line}"
            match words:
                case []:
                    pass
                case ["make", target, *_]:
                    assert target in targets, where
                case ["pip", "install", requirement]:
                    found = re.fullmatch(r"pgnotifybus(?:\[([\w,]+)\])?", requirement)
                    assert found, where
                    extras = set((found[1] or "").split(",")) - {""}
                    assert extras <= set(project["optional-dependencies"]), where
                case ["export", setting]:
                    assert setting == f"DATABASE_URL=postgresql{DOCUMENTED}", where
                case ["pgnotifybus", "listen", *arguments]:
                    running = stack.enter_context(
                        program.running(argv=[console(), "listen", *arguments], env=env)
                    )
                    where_told = "out" if "--json" in arguments else "err"
                    running.until(
                        lambda told: "listening: generation" in told or '"state":"up"' in told,
                        where_told,
                    )
                    listening.append((line, running))
                case _ if "pgnotifybus" in words:
                    done = subprocess.run(
                        ["sh", "-c", line.replace("pgnotifybus", console())],
                        env=program.clean_environment(**env),
                        capture_output=True,
                        timeout=60,
                        check=False,
                    )
                    assert done.returncode == 0, (where, done.stdout, done.stderr)
                case _:
                    pytest.fail(f"{where}: no way to check this; say it in prose instead")
        for line, running in listening:
            counted = "--count" in line
            if not counted:
                running.until(lambda printed: "orders" in printed)
                running.signal(signal.SIGINT)
            assert running.end() == (0 if counted else 130), line


def console() -> str:
    """The console script that the package installs."""
    found = Path(sys.executable).parent / "pgnotifybus"
    assert found.exists()
    return str(found)


# -- the pages ------------------------------------------------------------------------------------


def test_every_block_is_run() -> None:
    """A block of another kind would be shown and never tried."""
    assert {block.language for block in ALL} <= {"python", "sh", "sql", "text"}
    assert len(PYTHON) > 10
    assert SHELL
    for page in TEXTS:
        assert page.read_text().count("\n```") == 2 * sum(
            1 + bool(block.output) for block in blocks(page)
        ), "a fence that the test does not see"


@pytest.mark.parametrize("page", TEXTS, ids=[str(each.relative_to(ROOT)) for each in TEXTS])
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


# -- docstrings -----------------------------------------------------------------------------------

_DUNDERS = {"__anext__", "__aenter__", "__aexit__"}


def public_names() -> Iterator[tuple[str, object]]:
    """Every public name, and every public function and property of a public class."""
    found: dict[str, object] = {"pgnotifybus": pgnotifybus}
    for name in pgnotifybus.__all__:
        found[name] = getattr(pgnotifybus, name)
    for module in (broadcast, watch, observe, schema, triggers, prometheus, opentelemetry):
        found |= {f"{module.__name__}.{name}": value for name, value in defined_in(module)}
    found |= {f"testing.{name}": getattr(testing, name) for name in testing.__all__}
    del found["__version__"]
    for name, value in list(found.items()):
        if isinstance(value, type):
            found |= {f"{name}.{part}": each for part, each in parts(value)}
    yield from sorted(found.items())


def defined_in(module: ModuleType) -> Iterator[tuple[str, object]]:
    internal = {"Shared", "Emitter"}  # what the handles share, and how events are told
    for name, value in vars(module).items():
        mine = getattr(value, "__module__", None) == module.__name__
        exported = getattr(module, "__all__", None)
        public = not name.startswith("_") and name not in internal
        public = public and (exported is None or name in exported)
        if mine and public and (inspect.isroutine(value) or isinstance(value, type)):
            yield name, value


def parts(cls: type) -> Iterator[tuple[str, object]]:
    for base in cls.__mro__:
        if base.__module__.startswith("pgnotifybus"):
            for name, value in vars(base).items():
                public = not name.startswith("_") or name in _DUNDERS
                if public and (inspect.isfunction(value) or isinstance(value, property)):
                    yield name, value


PUBLIC = dict(public_names())


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_described(name: str) -> None:
    """With how a coroutine may be cancelled, which nobody could guess."""
    described = vars(PUBLIC[name]).get("__doc__") if isinstance(PUBLIC[name], type) else None
    described = described or inspect.getdoc(PUBLIC[name])
    assert described, f"{name} has no docstring"
    made_up = name.rpartition(".")[2] + "("
    assert not described.startswith(made_up), f"{name} has only what dataclasses make up"
    if inspect.iscoroutinefunction(PUBLIC[name]):
        assert "Cancel safety:" in described, f"{name} does not say how it may be cancelled"
