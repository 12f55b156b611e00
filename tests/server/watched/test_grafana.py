"""The Grafana dashboard of docs/grafana against what `/metrics` has."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.running import MODEL, Running

FILE = Path(__file__).parents[3] / "docs" / "grafana" / "pagoda.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
SELECTOR = re.compile(r"pagoda:(\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~?)"([^"]*)"')
GROUPING = re.compile(r"by \(([^)]*)\)")
OF_PROMETHEUS = {"instance", "job"}  # labels that a scrape adds


def queries() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["query"]["query"] for each in VARIABLES.values() if each["type"] == "query")


@pytest.fixture
def exposed(server: Running) -> dict[str, dict[str, set[str]]]:
    """The labels of each series of a server that has had traffic and refused some, and their values."""
    body = {"model": MODEL, "prompt": "The sea was calm.", "max_tokens": 2}
    server.post("/v1/completions", body)
    server.post("/v1/completions", body | {"max_tokens": -1})
    server.wait_until_idle()
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for name, value in sample.labels.items():
                labels[name].add(value)
    return found


def test_what_it_asks_for_is_there(exposed: dict[str, dict[str, set[str]]]) -> None:
    for query in queries():
        selectors = SELECTOR.findall(query)
        assert selectors, query
        for name, matchers in selectors:
            labels = exposed[f"pagoda:{name}"]
            for label, operator, value in MATCHER.findall(matchers):
                assert label in labels or label in OF_PROMETHEUS, query
                if not value.startswith("$"):
                    wanted = set(value.split("|")) if operator == "=~" else {value}
                    assert wanted <= labels[label], query
            for label in ", ".join(GROUPING.findall(query)).split(", "):
                assert not label or label in labels, query


def test_no_page_is_left_out(exposed: dict[str, dict[str, set[str]]]) -> None:
    pages = next(panel for panel in PANELS if panel["title"] == "Pages")
    states = [re.search(r'state=~?"([^"]*)"', target["expr"]) for target in pages["targets"]]
    asked = [state for match in states if match for state in match[1].split("|")]
    assert sorted(asked) == sorted(exposed["pagoda:kv_pages"]["state"])


def test_every_query_is_of_what_is_chosen() -> None:
    assert (VARIABLES["datasource"]["type"], VARIABLES["datasource"]["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*PANELS, *(target for panel in PANELS for target in panel["targets"])]
    asking += [each for each in VARIABLES.values() if each["type"] == "query"]
    assert all(each["datasource"] == source for each in asking)
    text = FILE.read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used == set(VARIABLES)


def test_panels_have_places_and_ids_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for first, second in combinations([panel["gridPos"] for panel in PANELS], 2):
        is_beside = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
        is_above = first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]
        assert is_beside or is_above
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)
