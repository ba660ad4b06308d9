"""A bus and an event log in numbers, for Prometheus and OpenTelemetry. Layer: metrics.

Each is a module of its own, imported by whoever has its package: `pgnotifybus.metrics.prometheus`
and `pgnotifybus.metrics.opentelemetry`. What is exported is defined once, in `definition`.
"""
