"""Metrics for Prometheus, by a collector that reads a bus when it is scraped. Layer: metrics.

::

    from prometheus_client import start_http_server
    from pgnotifybus.metrics import prometheus

    async with PgNotifyBus(dsn, ["orders"]) as bus:
        prometheus.instrument(bus)
        start_http_server(8000)

Nothing is counted for a message; what the bus counts anyway is read at each scrape, from whatever
thread serves it. Needs `pip install 'pgnotifybus[prometheus]'`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import accumulate
from weakref import WeakKeyDictionary

from pgnotifybus.bus import PgNotifyBus
from pgnotifybus.errors import MissingExtra
from pgnotifybus.log.event_log import EventLog
from pgnotifybus.metrics.account import Account, Accounts, Instrumentation
from pgnotifybus.metrics.definition import BUS, METRICS, Metric
from pgnotifybus.metrics.tally import Histogram

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.core import Metric as AnyFamily
except ImportError as error:
    raise MissingExtra("prometheus") from error

__all__ = ["Instrumentation", "instrument"]

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def instrument(
    subject: PgNotifyBus | EventLog,
    *,
    name: str = "default",
    registry: CollectorRegistry = REGISTRY,
    channels: bool = True,
    run_time_channels: bool = True,
) -> Instrumentation:
    """Export the metrics of a bus or an event log.

    Call it in the event loop of the bus, before or after it is started; what can only be counted
    when it happens (reconnects, probes) is counted from then on. Call it in each process: custom
    collectors have no part in the client's multiprocess mode.

    Args:
        subject: The bus or log. A log's own bus is part of it.
        name: The value of the label `bus`, which tells this one from others of the same registry.
            The name of one that has ended is free again.
        registry: Where to register.
        channels: Whether each channel that was named at construction has series of its own;
            otherwise all are together, as `channel="(all)"`.
        run_time_channels: Whether channels that are listened to at run time are exported, together,
            as `channel="(run-time)"`.

    Returns:
        A handle that ends it, by `close()` or as a `with` block. Until then the metrics stay, also
        those of a bus that has ended, which is then in the state `stopped`.

    Raises:
        ValueError: If the name is empty or taken, or another collector of the registry has metrics
            of these names.
        TypeError: If the subject is neither a bus nor a log.
    """
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = BusCollector()
            registry.register(collector)
            _collectors[registry] = collector
        collector.accounts.check(name)
        account = Account(subject, name, channels=channels, run_time_channels=run_time_channels)
        collector.accounts.add(account)
    return Instrumentation(collector.accounts, account)


class BusCollector:
    """All buses and logs of one registry, as prometheus_client wants a custom collector."""

    def __init__(self) -> None:
        self.accounts = Accounts()

    def describe(self) -> Iterable[AnyFamily]:
        """Every metric, without values: so the registry knows the names without a scrape."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterable[AnyFamily]:
        """Every metric, as it is now."""
        families = {metric: _family(metric) for metric in METRICS}
        for account in self.accounts:
            for metric, labels, value in account.samples():
                family = families[metric]
                assert not isinstance(family, HistogramMetricFamily)
                family.add_metric(labels, value)
            for metric, histogram in account.histograms():
                family = families[metric]
                assert isinstance(family, HistogramMetricFamily)
                buckets, total = _buckets(metric, histogram)
                family.add_metric([account.name], buckets, total)
        return families.values()


_collectors: WeakKeyDictionary[CollectorRegistry, BusCollector] = WeakKeyDictionary()
_lock = threading.Lock()


def _family(metric: Metric) -> Family:
    labels = (BUS, *metric.labels)
    match metric.kind:
        case "counter":
            return CounterMetricFamily(metric.prometheus, metric.help, labels=labels)
        case "gauge":
            return GaugeMetricFamily(metric.prometheus, metric.help, labels=labels)
        case "histogram":
            return HistogramMetricFamily(metric.prometheus, metric.help, labels=labels)


def _buckets(metric: Metric, histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    counts, total = histogram.read()
    bounds = (*map(str, metric.buckets), "+Inf")
    return [*zip(bounds, accumulate(counts), strict=True)], total
