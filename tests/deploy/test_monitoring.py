"""The dashboard and the alerts name only metrics and labels that the roles really export."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from node.metrics import Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "quasar.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
SCRAPED_LABELS = {"job", "instance", "le"}
"""What Prometheus and its histograms add by themselves."""
FROM_PROMETHEUS = {"up"}
_PANEL_VARIABLE = re.compile(r"\$\w+")
_WRITES = re.compile(r"metrics\.(\w+)(?:\.labels\(.*?\))?\.(?:set|inc|dec|observe)\(")
_LABEL_VALUES = re.compile(r"^label_values\((.+), (\w+)\)$")


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def rules() -> list[dict[str, Any]]:
    """Every alert."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Every PromQL expression, Grafana's variables filled in."""
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    variables = [
        found[1]
        for variable in dashboard()["templating"]["list"]
        if (found := _LABEL_VALUES.match(variable.get("definition", "")))
    ]
    return [_PANEL_VARIABLE.sub("x", text) for text in panels + variables] + [
        rule["expr"] for rule in rules()
    ]


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args"):
        child = getattr(node, name, None)
        for part in child if isinstance(child, list) else [child]:
            if part is not None:
                yield from selectors(part)


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Every metric that a process exports, with its labels."""
    metrics = Metrics(role="validator")
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    for metric in vars(metrics).values():
        # A metric with labels has no sample before its first use: what it will have is known all the same.
        for described in metric.describe() if hasattr(metric, "describe") else ():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            for suffix in suffixes.get(described.type, ("",)):
                found.setdefault(described.name + suffix, set()).update(metric._labelnames)
    return found


def test_parser_finds_the_metrics_of_an_expression() -> None:
    parsed = promql_parser.parse('sum by (a) (rate(x_total{l="1"}[5m])) / on (b) (y > 3) unless max(z)')
    assert {selector.name for selector in selectors(parsed)} == {"x_total", "y", "z"}


@pytest.mark.parametrize("expression", expressions())
def test_expression_names_what_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    found = list(selectors(promql_parser.parse(expression)))
    assert found
    for selector in found:
        if selector.name in FROM_PROMETHEUS:
            continue
        assert selector.name in exported, f"no role exports {selector.name}"
        named = {matcher.name for matcher in selector.matchers.matchers}
        assert named <= exported[selector.name] | SCRAPED_LABELS


def test_every_metric_of_the_product_is_set_somewhere() -> None:
    written = {
        name
        for folder in ("node", "roles")
        for path in (ROOT / folder).rglob("*.py")
        for name in _WRITES.findall(path.read_text())
    }
    declared = {
        name
        for name, metric in vars(Metrics()).items()
        if hasattr(metric, "describe") and name not in ("registry", "build_info")
    }
    assert declared - written == set()


def test_every_metric_of_the_product_is_on_the_dashboard() -> None:
    shown = " ".join(expressions())
    missing = [
        described.name
        for metric in vars(Metrics()).values()
        if hasattr(metric, "describe")
        for described in metric.describe()
        if described.name.startswith("quasar_") and described.name not in shown
    ]
    assert missing == []


def test_alerts_say_what_happens_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules()) >= 10
    for rule in rules():
        assert rule["alert"].startswith("Quasar")
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["summary"]) > 10
        assert len(rule["annotations"]["description"]) > 20


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)
