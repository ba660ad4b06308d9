"""What is exported of a live bus and a live log, to Prometheus and to OpenTelemetry."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter

from pgnotifybus import EventLog, PgNotifyBus, observe, schema
from pgnotifybus.metrics import opentelemetry, prometheus
from pgnotifybus.metrics.definition import METRICS, OF_A_BUS, OF_A_LOG, Metric
from pgnotifybus.testing import RecordingObserver
from support.eventful import eventful
from support.scraped import Scrape


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    made = MeterProvider([reader], shutdown_on_exit=False)
    yield made
    made.shutdown()


def exported(reader: InMemoryMetricReader) -> dict[str, dict[tuple[str, ...], Any]]:
    """Every metric, and its points by the values of their attributes but `bus`."""
    data = reader.get_metrics_data()
    found: dict[str, dict[tuple[str, ...], Any]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = found.setdefault(metric.name, {})
                for point in metric.data.data_points:
                    attributes = dict(point.attributes or {})
                    attributes.pop("bus")
                    points[tuple(map(str, attributes.values()))] = point
    return found


# -- Prometheus -----------------------------------------------------------------------------------


async def test_a_scrape_says_what_has_happened(
    database18: str, registry: CollectorRegistry
) -> None:
    before = time.time()
    async with eventful(
        database18, lambda bus: prometheus.instrument(bus, registry=registry, name="shop")
    ):
        now = Scrape(registry)
        assert now.by("pgnotifybus_state", "state") == {
            "new": 0,
            "connecting": 0,
            "live": 1,
            "lagging": 0,
            "standby": 0,
            "behind a pooler": 0,
            "down": 0,
            "stopped": 0,
        }
        assert now.value("pgnotifybus_generation", bus="shop") == 2
        reconnects = now.by("pgnotifybus_reconnects_total", "cause")
        assert (reconnects.pop("link lost"), set(reconnects.values())) == (1, {0})
        assert set(now.by("pgnotifybus_connect_failures_total", "cause").values()) == {0}
        probes = now.value("pgnotifybus_probe_duration_seconds_count")
        assert probes is not None
        assert probes >= 1
        assert now.value("pgnotifybus_probe_duration_seconds_bucket", le="+Inf") == probes
        assert probes == now.value("pgnotifybus_events_total", event="ProbeAnswered")
        for name in ("last_message", "last_probe"):
            at = now.value(f"pgnotifybus_{name}_timestamp_seconds")
            assert at is not None
            assert before - 1 <= at <= time.time() + 1
        usage = now.value("pgnotifybus_queue_usage_ratio")
        assert usage is not None
        assert 0 <= usage < 0.5

        def by_channel(name: str) -> dict[str, float]:
            return now.by(f"pgnotifybus_{name}", "channel")

        # Those of a channel that was left still count.
        assert by_channel("messages_received_total") == {"orders": 5, "jobs": 0, "(run-time)": 2}
        assert by_channel("messages_delivered_total") == {"orders": 10, "jobs": 0, "(run-time)": 2}
        assert by_channel("messages_skipped_total") == {"orders": 3, "jobs": 0, "(run-time)": 0}
        assert by_channel("ring_messages") == {"orders": 2, "jobs": 0, "(run-time)": 1}
        assert by_channel("ring_capacity") == {"orders": 2, "jobs": 2, "(run-time)": 2}
        assert by_channel("ring_unread") == {"orders": 2, "jobs": 0, "(run-time)": 0}
        assert by_channel("receivers") == {"orders": 2, "jobs": 0, "(run-time)": 1}
        assert now.value("pgnotifybus_channels") == 3
        assert now.value("pgnotifybus_messages_unrouted_total") == 0
        assert now.value("pgnotifybus_message_latency_seconds_count") == 5
        seconds = now.value("pgnotifybus_message_latency_seconds_sum")
        assert seconds is not None
        assert 0 < seconds < 10
    assert Scrape(registry).value("pgnotifybus_state", state="stopped") == 1


async def test_all_metrics_of_a_bus_and_a_log_are_exported_and_no_others(
    database18: str, registry: CollectorRegistry
) -> None:
    await schema.install(database18)
    async with eventful(
        database18, lambda bus: prometheus.instrument(bus, registry=registry, name="of the bus")
    ):
        names = {sample.name for sample in Scrape(registry).samples}
        assert names == series_of(each for each in METRICS if each not in OF_A_LOG)
    opened = RecordingObserver()
    async with EventLog(database18, probe_interval=0.02, observer=opened) as log:
        recorder = RecordingObserver()
        remove = log.add_observer(recorder)
        # Who opens the log first sees to it that nothing is under way, and then goes to sleep.
        await opened.wait_for(observe.PacemakerChanged, where=lambda e: e.state == "asleep")
        with prometheus.instrument(log, registry=registry, name="of the log"):
            await log.cursor()
            await recorder.wait_for(observe.ProbeAnswered)
            now = Scrape(registry)
            reads = now.value("pgnotifybus_log_reads_total", bus="of the log")
            assert reads == log.statistics().reads > 0
            assert now.by("pgnotifybus_log_pacemaker", "state") == {
                "asleep": 1,
                "awake": 0,
                "draining": 0,
            }
            assert log.health().state == "live"
            remove()
            told = len(recorder.events)
            names = {each.name for each in now.samples if each.labels["bus"] == "of the log"}
            never = {"pgnotifybus_last_message_timestamp_seconds"}  # nobody has appended
            assert names | never == series_of(each for each in METRICS if each not in OF_A_BUS)
        assert {sample.labels["bus"] for sample in Scrape(registry).samples} == {"of the bus"}
    assert len(recorder.events) == told, "not even that it has ended"


def series_of(metrics: Any) -> set[str]:
    """The names of the series of these metrics."""
    found = set()
    for metric in metrics:
        ends = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        found |= {metric.prometheus + end for end in ends}
    return found


async def test_channels_may_be_told_together_or_not_at_all(
    database18: str, registry: CollectorRegistry
) -> None:
    async with PgNotifyBus(database18, ["orders", "jobs"]) as bus:
        room = await bus.listen("room")
        for channel in ("orders", "jobs", "room"):
            await bus.notify(channel)
        await room.recv()

        def received(channels: bool = True, run_time_channels: bool = True) -> dict[str, float]:
            with prometheus.instrument(
                bus, registry=registry, channels=channels, run_time_channels=run_time_channels
            ):
                return Scrape(registry).by("pgnotifybus_messages_received_total", "channel")

        assert received() == {"orders": 1, "jobs": 1, "(run-time)": 1}
        assert received(channels=False) == {"(all)": 3}
        assert received(run_time_channels=False) == {"orders": 1, "jobs": 1}
        assert received(channels=False, run_time_channels=False) == {"(all)": 2}


async def test_names_tell_buses_apart_and_are_free_again_after_the_end(
    database18: str, registry: CollectorRegistry
) -> None:
    async with PgNotifyBus(database18, ["a"]) as bus, PgNotifyBus(database18, ["b"]) as other:
        prometheus.instrument(bus, registry=registry)
        for again in (bus, other):
            with pytest.raises(ValueError, match=r"'default' already: give each its own name="):
                prometheus.instrument(again, registry=registry)
        handle = prometheus.instrument(other, registry=registry, name="other")
        assert repr(handle) == "<Instrumentation 'other'>"
        assert Scrape(registry).by("pgnotifybus_channels", "bus") == {"default": 1, "other": 1}
        handle.close()
        handle.close()
        assert Scrape(registry).by("pgnotifybus_channels", "bus") == {"default": 1}
        prometheus.instrument(other, registry=CollectorRegistry())  # another one: no matter
    async with PgNotifyBus(database18, ["a", "b", "c"]) as later:
        prometheus.instrument(later, registry=registry)
        assert Scrape(registry).by("pgnotifybus_channels", "bus") == {"default": 3}


async def test_what_cannot_be_instrumented_is_refused(
    database18: str, registry: CollectorRegistry
) -> None:
    bus = PgNotifyBus(database18, ["a"])
    wrong: Any = database18
    with pytest.raises(TypeError, match="only a PgNotifyBus or an EventLog has metrics, not a str"):
        prometheus.instrument(wrong, registry=registry)
    with pytest.raises(ValueError, match="name must not be empty"):
        prometheus.instrument(bus, registry=registry, name="")
    nameless: Any = None
    with pytest.raises(TypeError, match="name must be a str, not NoneType"):
        prometheus.instrument(bus, registry=registry, name=nameless)
    taken = CollectorRegistry()
    Counter("pgnotifybus_reconnects", "somebody else's", registry=taken)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        prometheus.instrument(bus, registry=taken)
    prometheus.instrument(bus, registry=registry)  # none of these has left anything behind
    assert Scrape(registry).value("pgnotifybus_state", state="new") == 1


async def test_other_threads_may_scrape_while_channels_come_and_go(
    database18: str, registry: CollectorRegistry
) -> None:
    """And no counter ever goes back, which would read as a restart."""
    over = False
    interval = sys.getswitchinterval()
    async with PgNotifyBus(database18, ["orders"]) as bus:
        prometheus.instrument(bus, registry=registry)

        def scrape() -> int:
            seen, times = 0, 0
            while not over:
                now = bus.statistics()
                there = sum(channel.received for channel in now.channels.values())
                assert now.former.received + there >= seen
                seen, times = now.former.received + there, times + 1
                if not times % 10:
                    assert Scrape(registry).value("pgnotifybus_state", state="live") == 1
            return times

        sys.setswitchinterval(1e-6)
        scraping = asyncio.create_task(asyncio.to_thread(scrape))
        try:
            for number in range(10):
                rooms = [await bus.listen(f"{number}.{each}") for each in range(3)]
                for each in range(3):
                    await bus.notify(f"{number}.{each}")
                for room in rooms:
                    await room.recv()
                    room.close()
        finally:
            over = True
            sys.setswitchinterval(interval)
        assert await scraping > 1
        assert bus.statistics().received == 30


# -- OpenTelemetry --------------------------------------------------------------------------------


async def test_opentelemetry_exports_the_same(
    database18: str,
    registry: CollectorRegistry,
    provider: MeterProvider,
    reader: InMemoryMetricReader,
) -> None:
    async with eventful(
        database18,
        lambda bus: prometheus.instrument(bus, registry=registry),
        lambda bus: opentelemetry.instrument(bus, meter_provider=provider),
    ) as bus:
        # No await from here on: both are of the same moment.
        scrape, points = Scrape(registry), exported(reader)
        for metric in METRICS:
            if metric not in OF_A_LOG:
                compare(metric, scrape, points[metric.opentelemetry])
        assert bus.health().state == "live"
    assert exported(reader)["pgnotifybus.state"]["stopped",].value == 1


def compare(metric: Metric, scrape: Scrape, points: dict[tuple[str, ...], Any]) -> None:
    """Hold the points of one metric against its series."""
    if metric.kind == "histogram":
        [point] = points.values()
        assert point.count == scrape.value(metric.prometheus + "_count")
        assert point.sum == pytest.approx(scrape.value(metric.prometheus + "_sum"))
        assert point.explicit_bounds == metric.buckets
        within = [*scrape.by(metric.prometheus + "_bucket", "le").values()]
        assert [sum(point.bucket_counts[: n + 1]) for n in range(len(within))] == within
        return
    series = {
        tuple(sample.labels[name] for name in metric.labels): sample.value
        for sample in scrape.samples
        if sample.name == metric.prometheus
    }
    values = {labels: float(point.value) for labels, point in points.items()}
    assert values == pytest.approx(series, abs=0.5 if metric.unit == "s" else 0), metric.name


async def test_opentelemetry_of_a_log_and_of_several(
    database18: str, provider: MeterProvider, reader: InMemoryMetricReader
) -> None:
    await schema.install(database18)
    async with EventLog(database18) as log, PgNotifyBus(database18, ["a"]) as bus:
        handle = opentelemetry.instrument(log, name="log", meter_provider=provider)
        await log.cursor()
        for _ in range(2):  # each export is of its own moment, however soon it comes
            reads = exported(reader)["pgnotifybus.log.reads"][()].value
            assert reads == log.statistics().reads > 0
            await log.cursor()
        with pytest.raises(ValueError, match="'log' already"):
            opentelemetry.instrument(bus, name="log", meter_provider=provider)
        opentelemetry.instrument(bus, meter_provider=provider)
        assert exported(reader)["pgnotifybus.channels"][()].value == 1
        handle.close()
        assert "pgnotifybus.log.reads" not in exported(reader)


# -- extras ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_a_missing_package_is_named(module: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import pgnotifybus, pgnotifybus.metrics\n"
        "try:\n"
        f"    import pgnotifybus.metrics.{module}\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"MissingExtra pip install 'pgnotifybus[{extra}]'\n"


def test_importing_the_library_imports_neither() -> None:
    code = (
        "import sys, pgnotifybus, pgnotifybus.metrics\n"
        "print([each for each in sys.modules if each.startswith(('prometheus', 'opentele'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
