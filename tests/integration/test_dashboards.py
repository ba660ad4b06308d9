"""The dashboard and the alert rules of the documentation ask for what a live bus exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import CollectorRegistry

from pgnotifybus import EventLog, schema
from pgnotifybus.metrics import prometheus
from pgnotifybus.metrics.definition import METRICS
from support.documents import ROOT
from support.eventful import eventful
from support.promql import TARGET, ask
from support.scraped import Scrape

DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs/metrics/grafana.json").read_text())
PANELS: list[dict[str, Any]] = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "docs/metrics/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Asked(NamedTuple):
    """One expression, and the labels that the text beside it names."""

    place: str
    expression: str
    shown: set[str]


def asked() -> Iterator[Asked]:
    """Every expression of both files."""
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            yield Asked(f"panel {panel['title']!r}", target["expr"], shown)
    for rule in RULES:
        text = json.dumps(rule["annotations"])
        shown = set(re.findall(r"\$labels\.(\w+)", text))
        yield Asked(f"alert {rule['alert']}", rule["expr"], shown)
    for variable in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert found, variable["name"]
        yield Asked(f"variable {variable['name']!r}", found[1], {found[2]})


async def test_every_name_and_label_is_one_that_a_live_bus_exports(database18: str) -> None:
    await schema.install(database18)
    registry = CollectorRegistry()
    async with (
        EventLog(database18) as log,
        eventful(database18, lambda bus: prometheus.instrument(bus, registry=registry)),
    ):
        prometheus.instrument(log, registry=registry, name="log")
        scrape = Scrape(registry)
    labels = scrape.labels()
    names = set()
    for place, expression, shown in asked():
        question = ask(expression)
        for name, matched in question.selected:
            assert name in labels, f"{place} asks for {name}, which nobody exports"
            names.add(name)
            known = labels[name] | TARGET
            used = set(matched) | question.grouped_by | shown
            assert used <= known, f"{place}: {name} has no {sorted(used - known)}"
            if question.kept is not None:
                assert shown <= question.kept, f"{place}: `by` leaves no {shown}"
            for label, values in matched.items():
                if label not in TARGET:
                    unknown = set(values) - scrape.by(name, label).keys()
                    assert not unknown, f"{place}: {label} is never {sorted(unknown)}"
    shown_at_all = {re.sub("_(bucket|sum|count)$", "", name) for name in names}
    assert shown_at_all == {metric.prometheus for metric in METRICS}


# -- Grafana --------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == SOURCE
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert "{{bus}}" in target["legendFormat"]
        assert "{{instance}}" in target["legendFormat"]
        for variable in ("job", "instance", "bus"):
            assert f'{variable}=~"${variable}"' in target["expr"]


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """Without an id it is a new one; the data source is chosen when it is opened."""
    assert DASHBOARD["id"] is None
    assert DASHBOARD["title"] == DASHBOARD["uid"] == "pgnotifybus"
    first, *others = DASHBOARD["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource",) * 2 + ("prometheus",)
    assert [each["name"] for each in others] == ["job", "instance", "bus"]
    assert all(each["datasource"] == SOURCE for each in others)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, f"{panel['title']} lies on another panel"
        taken |= cells


# -- alerts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert rule["annotations"]["description"].endswith(".")
    assert rule["alert"].startswith("PgNotifyBus")
    assert re.fullmatch(r"\d+m", rule.get("for", "0m"))
