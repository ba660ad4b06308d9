"""Metrics for OpenTelemetry, by instruments that are observed when they are exported.
Layer: metrics.

::

    from pgnotifybus.metrics import opentelemetry

    async with PgNotifyBus(dsn, ["orders"]) as bus:
        opentelemetry.instrument(bus)

It uses the API alone: which SDK and exporter there are is for the application to say. The metrics
are those of Prometheus, and have the same names when they get there. Needs
`pip install 'pgnotifybus[opentelemetry]'`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final
from weakref import WeakKeyDictionary

from pgnotifybus._version import __version__
from pgnotifybus.bus import PgNotifyBus
from pgnotifybus.errors import MissingExtra
from pgnotifybus.log.event_log import EventLog
from pgnotifybus.metrics.account import Account, Accounts, Instrumentation, Sample
from pgnotifybus.metrics.definition import BUS, METRICS, Metric

try:
    from opentelemetry.metrics import (
        CallbackOptions,
        Histogram,
        Meter,
        MeterProvider,
        Observation,
        get_meter_provider,
    )
except ImportError as error:
    raise MissingExtra("opentelemetry") from error

__all__ = ["Instrumentation", "instrument"]

_FRESH_SECONDS: Final = 1.0


def instrument(
    subject: PgNotifyBus | EventLog,
    *,
    name: str = "default",
    meter_provider: MeterProvider | None = None,
    channels: bool = True,
    run_time_channels: bool = True,
) -> Instrumentation:
    """Export the metrics of a bus or an event log.

    Call it in the event loop of the bus, before or after it is started; what can only be counted
    when it happens (reconnects, probes) is counted from then on.

    Args:
        subject: The bus or log. A log's own bus is part of it.
        name: The value of the attribute `bus`, which tells this one from others of the same
            provider. The name of one that has ended is free again.
        meter_provider: What makes the meter; None for the global one, as it is now.
        channels: Whether each channel that was named at construction has values of its own;
            otherwise all are together, as `channel="(all)"`.
        run_time_channels: Whether channels that are listened to at run time are exported, together,
            as `channel="(run-time)"`.

    Returns:
        A handle that ends it, by `close()` or as a `with` block. Until then the metrics stay, also
        those of a bus that has ended, which is then in the state `stopped`.

    Raises:
        ValueError: If the name is empty or taken.
        TypeError: If the subject is neither a bus nor a log.
    """
    provider = get_meter_provider() if meter_provider is None else meter_provider
    with _lock:
        instruments = _instruments.get(provider)
        if instruments is None:
            instruments = Instruments(provider.get_meter("pgnotifybus", __version__))
            _instruments[provider] = instruments
        instruments.accounts.check(name)
        account = Account(
            subject,
            name,
            channels=channels,
            run_time_channels=run_time_channels,
            on_duration=instruments.recorder(name),
        )
        instruments.accounts.add(account)
    return Instrumentation(instruments.accounts, account)


class Instruments:
    """All instruments of one meter, for all buses and logs."""

    def __init__(self, meter: Meter) -> None:
        self.accounts = Accounts()
        self._histograms: dict[Metric, Histogram] = {}
        self._reading: dict[Metric, list[Sample]] = {}
        self._read_at = float("-inf")
        self._lock = threading.Lock()
        for metric in METRICS:
            self._make(meter, metric)

    def recorder(self, name: str) -> Callable[[Metric, float], None]:
        """What the values of histograms of one bus or log are told to."""
        attributes = {BUS: name}

        def record(metric: Metric, seconds: float) -> None:
            self._histograms[metric].record(seconds, attributes)

        return record

    def _make(self, meter: Meter, metric: Metric) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            names = (BUS, *metric.labels)
            return [
                Observation(value, dict(zip(names, labels, strict=True)))
                for _, labels, value in self._samples(metric)
            ]

        name, unit, text = metric.opentelemetry, metric.unit, metric.help
        match metric.kind:
            case "counter":
                meter.create_observable_counter(name, [observe], unit, text)
            case "gauge":
                meter.create_observable_gauge(name, [observe], unit, text)
            case "histogram":
                self._histograms[metric] = meter.create_histogram(
                    name, unit, text, explicit_bucket_boundaries_advisory=metric.buckets
                )

    def _samples(self, metric: Metric) -> list[Sample]:
        """The values of one metric; those of one export are of one reading."""
        with self._lock:
            # An export asks for each metric once: who asks for one again is at the next export.
            stale = time.monotonic() - self._read_at > _FRESH_SECONDS
            if stale or metric not in self._reading:
                self._reading = {each: [] for each in METRICS}
                for account in self.accounts:
                    for sample in account.samples():
                        self._reading[sample.metric].append(sample)
                self._read_at = time.monotonic()
            return self._reading.pop(metric)


_instruments: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()
_lock = threading.Lock()
