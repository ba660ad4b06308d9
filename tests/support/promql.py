"""What an expression of PromQL asks for."""

from __future__ import annotations

from dataclasses import dataclass, field

import promql_parser as promql

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus adds to whatever it scrapes."""

_GRAFANAS = {"$__rate_interval": "5m"}


@dataclass(frozen=True, slots=True)
class Question:
    """One expression."""

    selected: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    """The names of series, each with the labels that are matched and the values they may have;
    without those that are left to a variable."""
    grouped_by: set[str] = field(default_factory=set)
    """The labels of all `by` and `without`."""
    kept: set[str] | None = None
    """The labels that are left by `by`; None if there is none."""


def ask(expression: str) -> Question:
    """Take an expression apart.

    Raises:
        ValueError: If it is not PromQL.
    """
    for variable, value in _GRAFANAS.items():
        expression = expression.replace(variable, value)
    found = Question()
    kept: list[set[str]] = []

    def visit(node: promql.Expr) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.grouped_by.update(node.modifier.labels)
            if node.modifier.type == promql.AggModifierType.By:
                kept.append({*node.modifier.labels})
        if isinstance(node, promql.VectorSelector):
            assert node.name, "every selector names its metric"
            matched = {
                matcher.name: [] if "$" in matcher.value else matcher.value.split("|")
                for matcher in node.matchers.matchers
            }
            found.selected.append((node.name, matched))

    promql.walk(promql.parse(expression), visit)
    return Question(found.selected, found.grouped_by, kept[0] if kept else None)
