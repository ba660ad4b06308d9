"""A PostgreSQL server of one's own: start, stop, kill, pause. Layer: embedded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar
from urllib.parse import quote, urlencode

from pgnotifybus.embedded import account as accounts
from pgnotifybus.embedded import cluster, installations, scratch, startup
from pgnotifybus.embedded.cluster import EmbeddedServerError
from pgnotifybus.embedded.postmaster import PostmasterProcess

_T = TypeVar("_T")

StopMode = Literal["fast", "immediate", "smart"]

_STOP_TIMEOUT = 60.0  # seconds
# A private server's data is thrown away with it, so no crash has to be survived on disk.
_PRIVATE_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


class EmbeddedServer:
    """A PostgreSQL server that this process starts and stops.

    Making one does no I/O. As a context manager it is started, and closed at the end. POSIX only.

    Args:
        data_dir: Where the data live; made when absent, kept when closed. The log and a mirror of
            the programs may lie beside it. None makes a private server: a temporary directory,
            removed by `close`, at the latest when the process ends.
        version: The major version; None takes the one of the data directory, else the newest.
        tcp: Whether to listen on 127.0.0.1 too, at a port that stays the same over restarts.
        settings: Server settings by name, as in postgresql.conf.
        password: The superuser's password, asked for over TCP. It takes effect when the data
            directory is made, and does not change an existing one. None trusts all local users.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        version: int | None = None,
        tcp: bool = False,
        settings: Mapping[str, str] | None = None,
        password: str | None = None,
    ) -> None:
        require_posix()
        self._private = data_dir is None
        self._data_dir = None if data_dir is None else data_dir.absolute()
        self._version = version
        self._tcp = tcp
        self._settings = {**(_PRIVATE_SETTINGS if data_dir is None else {}), **(settings or {})}
        self._password = password
        self._port: int | None = None
        self._socket_dir: Path | None = None
        self._installation: installations.Installation | None = None
        self._process: PostmasterProcess | None = None
        self._crashed = False

    def __repr__(self) -> str:
        where = "private" if self._private else self._data_dir
        return f"<EmbeddedServer {where} {'running' if self.running else 'stopped'}>"

    # -- where it is ------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the postmaster lives; a paused one does."""
        return self._process is not None and self._process.running

    @property
    def paused(self) -> bool:
        """Whether `pause` has been called, and `resume` not yet."""
        return self._process is not None and self._process.paused

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return _there(self._process).pid

    @property
    def port(self) -> int:
        """The port; without TCP it is only part of the socket's name."""
        return _there(self._port)

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return _there(self._data_dir)

    @property
    def socket_dir(self) -> Path:
        """The directory of the Unix socket."""
        return _there(self._socket_dir)

    @property
    def log_path(self) -> Path:
        """The server's log: beside the data directory, appended to."""
        return self.data_dir.with_name(f"{self.data_dir.name}.log")

    @property
    def server_version(self) -> int:
        """The major version, for example 18."""
        return self._choose_installation().version

    @property
    def dsn(self) -> str:
        """The superuser's DSN of the database `postgres`: over TCP if asked for, else the socket.

        psycopg, asyncpg, SQLAlchemy and libpq understand it. It may hold the password.
        """
        return self.dsn_for()

    def dsn_for(
        self, *, database: str = "postgres", user: str = "postgres", password: str | None = None
    ) -> str:
        """Return the DSN of a database and user.

        Args:
            database: The database's name, unquoted.
            user: The user's name, unquoted.
            password: The user's password; None takes the superuser's own where one is needed.
        """
        if password is None and user == "postgres" and self._tcp:
            password = self._password
        secret = "" if password is None else f":{quote(password, safe='')}"
        who, what = f"{quote(user, safe='')}{secret}", quote(database, safe="")
        if self._tcp:
            return f"postgresql://{who}@127.0.0.1:{self.port}/{what}"
        place = urlencode({"host": str(self.socket_dir), "port": self.port}, safe="/")
        return f"postgresql://{who}@/{what}?{place}"

    # -- up and down ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server and wait until it takes connections; harmless when it runs.

        Raises:
            MissingExtra: There is no PostgreSQL here; the message is the pip command.
            EmbeddedServerError: It did not start; the message holds the end of its log.
        """
        if self.running:
            return
        account = accounts.choose()
        installation = self._choose_installation()
        if self._data_dir is None:
            self._data_dir = scratch.new_directory(account) / "data"
            scratch.at_removal(self.close)
        started = startup.start(
            startup.Plan(
                installation=installation,
                account=account,
                data_dir=self._data_dir,
                log_path=self.log_path,
                programs_dir=scratch.root(account) if self._private else self._data_dir.parent,
                settings=self._settings,
                password=self._password,
                tcp=self._tcp,
                port=self._port,
                socket_dir=self._socket_dir,
            )
        )
        self._process, self._port, self._socket_dir = started
        self._crashed = False

    def adopt(self) -> bool:
        """Take over a server that already runs on the data directory, once it is ready.

        Returns:
            Whether there is one. If so, `stop` and `close` stop it as if it had been started here.
        """
        if self._data_dir is None or self.running:
            return False
        found = startup.find_running(self._data_dir)
        if found is None:
            return False
        self._process, self._port, self._socket_dir = found
        return True

    def disown(self) -> None:
        """Leave the server running for other processes; this object forgets it."""
        if self._process is not None:
            self._process.disown()
            self._process = None

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and wait until it is down; its data stay, also a private server's.

        Harmless when it is not running. A paused server is resumed first.

        Args:
            mode: As pg_ctl has it: "smart" waits for the clients to leave, "fast" rolls back and
                disconnects them, "immediate" ends everything and leaves recovery to the next start.

        Raises:
            EmbeddedServerError: It is still up after 60 s; try "immediate" or `kill`.
        """
        if self._process is None:
            return
        self._process.resume()
        self._process.signal(startup.STOP_SIGNALS[mode])
        if not self._process.wait(_STOP_TIMEOUT):
            raise EmbeddedServerError(
                f"the server did not stop within {_STOP_TIMEOUT:.0f} s ({mode}): try "
                f"stop('immediate') or kill(). Its log ends:\n{cluster.tail(self.log_path)}"
            )
        self._process = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again, with the same data, directory and port."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill every process of the server (SIGKILL), as a crash of the machine would.

        When it returns all of them are gone; the next `start` does crash recovery.
        """
        if self._process is not None:
            self._process.kill()
            self._process, self._crashed = None, True

    def pause(self) -> None:
        """Stop every process of the server where it stands (SIGSTOP): sockets stay, none answers.

        The kernel still accepts connections for it, until the backlog is full.
        """
        _there(self._process).pause()

    def resume(self) -> None:
        """Let a paused server go on; harmless when it is not paused."""
        if self._process is not None:
            self._process.resume()

    def close(self) -> None:
        """Stop the server; a private one is removed with all its data. Twice is harmless."""
        if not self._private:
            self.stop()
            scratch.remove_socket_directory(self._socket_dir)
            self._socket_dir = None
            return
        scratch.forget(self.close)
        try:
            if self._crashed:
                self.start()  # only the next postmaster gives back the shared memory of the last
            self.stop("immediate")  # no checkpoint: nothing of it is kept
        except EmbeddedServerError:
            self.kill()
        if self._data_dir is not None:
            shutil.rmtree(self._data_dir.parent, ignore_errors=True)
            self._data_dir = self._socket_dir = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _choose_installation(self) -> installations.Installation:
        """Find the programs: a data directory can only be run by the version that made it."""
        if self._installation is None:
            made_by = None if self._data_dir is None else cluster.major_version(self._data_dir)
            if None not in (made_by, self._version) and made_by != self._version:
                raise EmbeddedServerError(
                    f"{self._data_dir} was made by PostgreSQL {made_by}, not {self._version}: "
                    "choose another directory, or leave the version out"
                )
            self._installation = installations.find(made_by or self._version)
        return self._installation


def require_posix() -> None:
    """Raise EmbeddedServerError where there are no POSIX signals, locks and sockets: on Windows."""
    if sys.platform == "win32":
        raise EmbeddedServerError(
            "the embedded server needs Linux, macOS or another POSIX system: give the DSN of a "
            "running server instead (--dsn or DATABASE_URL)"
        )


def _there(value: _T | None) -> _T:
    """Return what only a server that has been started has."""
    if value is None:
        raise EmbeddedServerError("the server is not running: call start() first")
    return value
