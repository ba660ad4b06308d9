"""What Prometheus reads of a registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """Every series of one scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.text = generate_latest(registry).decode()
        self.samples = [
            sample
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """The one series of this name with these labels; None if there is none."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) < 2, f"{name} {labels} is several series"
        return found[0] if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """The values of all series of a name, by one of their labels."""
        return {each.labels[label]: each.value for each in self.samples if each.name == name}

    def labels(self) -> dict[str, set[str]]:
        """The names of all series, each with those of its labels."""
        found: dict[str, set[str]] = {}
        for sample in self.samples:
            assert found.setdefault(sample.name, set(sample.labels)) == set(sample.labels)
        return found
