"""Everything that is told of a bus or a log, in one text: to be searched for what must not be."""

from __future__ import annotations

import contextlib
import logging
import traceback
from types import TracebackType
from typing import Any
from urllib.parse import quote

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from pgnotifybus import EventLog, PgNotifyBus
from pgnotifybus.emitting import logger
from pgnotifybus.metrics import opentelemetry, prometheus
from pgnotifybus.testing import RecordingObserver


class Watched(logging.Handler):
    """Events, the log down to its last detail, metrics, health, and how things show themselves."""

    def __init__(self, recorder: RecordingObserver | None = None) -> None:
        """Begin with nothing.

        Args:
            recorder: An observer of what is watched; one of its own, if None.
        """
        super().__init__(logging.DEBUG)
        self.recorder = RecordingObserver() if recorder is None else recorder
        self._lines: list[str] = []
        self._registry = CollectorRegistry()
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader], shutdown_on_exit=False)
        self._subjects: list[PgNotifyBus | EventLog] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Watched:
        self._stack.callback(self._provider.shutdown)
        self._stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)
        self._stack.callback(logger.removeHandler, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._stack.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a line of the log."""
        self._lines.append(self.format(record))

    def add(self, subject: PgNotifyBus | EventLog) -> None:
        """Watch one more, and have its metrics exported."""
        name = f"number {len(self._subjects)}"
        self._subjects.append(subject)
        prometheus.instrument(subject, registry=self._registry, name=name)
        opentelemetry.instrument(subject, meter_provider=self._provider, name=name)

    def told(self) -> str:
        """All of it, up to now."""
        data = self._reader.get_metrics_data()
        said: list[Any] = [
            *self._lines,
            generate_latest(self._registry).decode(),
            data.to_json() if data is not None else "",
            *(str(each) + repr(each) + repr(each.health()) for each in self._subjects),
        ]
        for event in self.recorder.events:
            said += [str(event), repr(event)]
            error = getattr(event, "error", None)
            if error is not None:
                said += [str(error), repr(error), *traceback.format_exception(error, chain=False)]
        return "\n".join(said)


def no_secret_in(text: str, *secrets: str) -> None:
    """See that none is told, however it is spelled."""
    for secret in secrets:
        for spelled in (secret, quote(secret, safe=""), repr(secret)[1:-1]):
            at = text.find(spelled)
            assert at < 0, f"it is told: ...{text[max(0, at - 300) : at + 40]}..."
