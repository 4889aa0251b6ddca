"""The dashboard asks for what the code records, and for nothing else."""

import json
import re
from pathlib import Path

import pytest

from actors.monitoring.ray_metrics import METERS, TAGS

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana" / "rlhf-bench.json").read_text("utf-8"))
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
VARIABLES = DASHBOARD["templating"]["list"]
SUFFIXES = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
SERVED = {f"ray_{name}{suffix}": name for name, (kind, _) in METERS.items() for suffix in SUFFIXES[kind.__name__]}


@pytest.mark.parametrize("query", [*QUERIES, *(v["definition"] for v in VARIABLES if v["type"] == "query")])
def test_every_query_is_of_metrics_and_tags_that_the_code_records(query):
    names = re.findall(r"\bray_\w+", query)
    assert names and set(names) <= SERVED.keys()
    labels = re.findall(r"(\w+)=~", query) + [
        label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")
    ]
    assert set(labels) <= {*TAGS, "le"}
    variables = {variable["name"] for variable in VARIABLES}
    assert set(re.findall(r"\$(\w+)", query)) - {"__rate_interval"} <= variables


def test_every_metric_has_a_panel():
    assert {SERVED[name] for query in QUERIES for name in re.findall(r"\bray_\w+", query)} == METERS.keys()


def test_panels_are_told_apart_and_do_not_overlap():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])
