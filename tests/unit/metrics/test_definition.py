"""Names and labels that Prometheus and OpenTelemetry take, and that people can rely on."""

from __future__ import annotations

import re

import pytest

from pgnotifybus.metrics.definition import BUS, METRICS, PROBE_DURATION, QUEUE_USAGE, Metric

NAMED = pytest.mark.parametrize("metric", METRICS, ids=[metric.name for metric in METRICS])


@NAMED
def test_names_keep_to_the_rules_of_both(metric: Metric) -> None:
    # https://prometheus.io/docs/practices/naming/ and OpenTelemetry's semantic conventions
    assert re.fullmatch(r"pgnotifybus_[a-z][a-z_]*[a-z]", metric.prometheus)
    assert re.fullmatch(r"pgnotifybus\.[a-z][a-z_.]*[a-z]", metric.opentelemetry)
    assert metric.prometheus.endswith("_total") == (metric.kind == "counter")
    assert BUS not in metric.labels
    assert all(re.fullmatch("[a-z]+", label) for label in metric.labels)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert re.fullmatch(r"[A-Z0-9][^\n]+[^.\n]", metric.help)
    assert metric.unit in ("", "s", "1") or re.fullmatch(r"\{[a-z]+\}", metric.unit)


def test_each_is_there_once_and_says_its_unit() -> None:
    assert len({metric.prometheus for metric in METRICS}) == len(METRICS)
    assert PROBE_DURATION.prometheus == "pgnotifybus_probe_duration_seconds"
    assert QUEUE_USAGE.prometheus == "pgnotifybus_queue_usage_ratio"
