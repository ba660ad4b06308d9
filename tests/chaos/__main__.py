"""`make chaos`: try every fault and say how long it takes. `make soak`: all of them, at random."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import platform
import random
from pathlib import Path

from chaos.cases import CASES
from chaos.fleet import fleet
from chaos.soak import soak
from chaos.table import rows, write
from chaos.trial import Outcome, trial
from pgnotifybus.embedded import EmbeddedServer
from support.servers import PASSWORD


def main() -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of each fault (10)")
    parser.add_argument("--only", default="", help="names of faults, with semicolons in between")
    parser.add_argument("--write", type=Path, help="a page to put the results into")
    parser.add_argument("--driver", choices=["psycopg", "asyncpg"], default="psycopg")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="faults at random instead")
    parser.add_argument("--seed", type=int, help="of the soak")
    parser.add_argument(
        "--fleet", type=int, metavar="BUSES", help="let so many lose their server at once instead"
    )
    given = parser.parse_args()
    logging.getLogger("pgnotifybus").setLevel(logging.ERROR)
    if given.soak is not None:
        seed = random.randrange(10**6) if given.seed is None else given.seed
        _soak(given.soak * 60, seed, given.driver)
        return
    if given.fleet is not None:
        _fleet(given.fleet, given.driver)
        return
    chosen = given.only.split(";") if given.only else list(CASES)
    results = {name: _try(name, given.rounds, given.driver) for name in chosen}
    table = rows(results)
    print(f"\n{table}")
    if given.write is not None:
        write(given.write, table)


def _soak(seconds: float, seed: int, driver: str) -> None:
    print(f"soak of {seconds:g} s, seed {seed}, {driver}", flush=True)
    with EmbeddedServer(version=18, tcp=True, password=PASSWORD) as server:
        report = asyncio.run(
            soak(server, driver, seconds, seed, lambda line: print(line, flush=True))  # type: ignore[arg-type]
        )
    print(
        f"{sum(report.faults.values())} faults, {report.generations} links, {report.sent:,} "
        f"messages a channel: {report.delivered:,} deliveries, {report.skipped:,} skipped and "
        f"told; {report.events:,} events of the log, each once; memory {report.growth:+,} bytes"
    )


def _fleet(buses: int, driver: str) -> None:
    settings = {"max_connections": str(buses + 20)}
    for away in (0.0, 1.0, 3.0, 10.0, 30.0):
        with EmbeddedServer(version=18, tcp=True, password=PASSWORD, settings=settings) as server:
            back = asyncio.run(fleet(server, driver, buses, away))  # type: ignore[arg-type]
        moments = ", ".join(
            f"{share:.0%} {back.seconds[math.ceil(share * buses) - 1]:.1f} s"
            for share in (0.1, 0.5, 0.9, 1.0)
        )
        print(
            f"{buses} buses, away for {away:g} s: live after {moments}; at most "
            f"{back.busiest(0.1)} came within 100 ms; {back.attempts / buses:.1f} attempts each",
            flush=True,
        )


def _try(name: str, rounds: int, driver: str) -> list[Outcome]:
    case = CASES[name]
    settings = dict(case.settings)
    with EmbeddedServer(version=18, tcp=True, password=PASSWORD, settings=settings) as server:

        async def all_rounds() -> list[Outcome]:
            each = [trial(case, server, driver, {}) for _ in range(rounds)]  # type: ignore[arg-type]
            # What is but waiting, and does nothing to the server, can be done at once.
            if name.startswith(("black hole", "drips", "kept open")):
                return await asyncio.gather(*each)
            return [await one for one in each]

        outcomes = asyncio.run(all_rounds())
    print(f"{name}: {rows({name: outcomes}).splitlines()[-1]}", flush=True)
    return outcomes


if __name__ == "__main__":
    print(f"Python {platform.python_version()}, PostgreSQL 18")
    main()
