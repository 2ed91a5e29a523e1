"""The dashboard and the alert rules, against what a running Airflow sends and what Prometheus makes of it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from cosmic.dag_constants import CANCEL_ABANDONED_WORK, FIND_MISSED_SCANS, FLIGHT_CHECK
from dev.local_airflow.settings import REPOSITORY
from dev.local_airflow.stack import free_port, wait_until
from support.live import SLOW, Pipeline, install_engines, start_live
from support.statsd import StatsdExporter, StatsdServer, served

pytestmark = pytest.mark.needs("prometheus")
MONITORING = REPOSITORY / "include" / "monitoring"
SELECTOR = re.compile(r"\b(?:airflow|cosmic)_\w+(?:\{[^}]*\})?")


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels."""
    found: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return found


def targets() -> list[dict[str, Any]]:
    """Their queries."""
    return [target for panel in panels() for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def mapping() -> dict[str, Any]:
    """The mapping of statsd_exporter."""
    found: dict[str, Any] = yaml.safe_load((MONITORING / "statsd_mapping.yaml").read_text())
    return found


class Prometheus:
    """A running one, with our rules, that scrapes and evaluates every second."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        """The data of an answer of its API."""
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def ready(self) -> bool:
        """Whether it has the metrics, often enough to see them increase."""
        try:
            seen = self.query("count_over_time(cosmic_scans_total[1m])")
        except OSError:
            return False
        return bool(seen) and all(int(series["value"][1]) > 2 for series in seen)


@pytest.fixture(scope="module")
def statsd(tmp_path_factory: pytest.TempPathFactory) -> StatsdServer:
    """What an Airflow sends that has done and failed scans, and run every DAG that says something."""
    server = StatsdServer()
    start = contextlib.contextmanager(start_live)
    with start(tmp_path_factory.mktemp("monitored"), extra=server.environment) as live:
        install_engines(live.facility)
        pipeline = Pipeline(live)
        runs = [pipeline.start(pipeline.new_scan()), pipeline.start(pipeline.new_scan("fail 3"))]
        others = [(FIND_MISSED_SCANS, {"dry_run": True}), (FLIGHT_CHECK, {})]
        started = [(dag_id, live.rest.trigger(dag_id, conf)) for dag_id, conf in others]
        assert [pipeline.finish(run) for run in runs] == ["success", "failed"]
        started.append((CANCEL_ABANDONED_WORK, live.rest.trigger(CANCEL_ABANDONED_WORK)))
        for dag_id, run in started:
            assert live.rest.wait_for_run(dag_id, run, SLOW)["state"] == "success"
        exporter = StatsdExporter(mapping())

        def everything() -> bool:
            exporter.exposition(list(server.lines))
            return exporter.used == {rule["match"] for rule in exporter.mapping["mappings"]}

        missing = {rule["match"] for rule in exporter.mapping["mappings"]} - exporter.used
        assert wait_until(everything, SLOW), f"never sent: {missing}"
    return server


@pytest.fixture(scope="module")
def prometheus(statsd: StatsdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the repository's configuration, on this machine's addresses."""
    folder = tmp_path_factory.mktemp("prometheus")
    with served(StatsdExporter(mapping()), statsd) as exporter_port:
        config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / "alerts.yaml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{exporter_port}"]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        command = ["prometheus", f"--config.file={folder}/prometheus.yaml"]
        command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
        with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                running = Prometheus(port)
                assert wait_until(running.ready, 120), (folder / "log").read_text()[-3000:]
                yield running
            finally:
                process.terminate()


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_well_formed_and_do_what_they_say() -> None:
    promtool("check", "rules", MONITORING / "alerts.yaml")
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yaml"))
    tested = (Path(__file__).with_name("alerts_test.yaml")).read_text()
    for rule in rules():
        assert rule["alert"] in tested
        assert {"summary", "advice"} == set(rule["annotations"])


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    source = yaml.safe_load((MONITORING / "grafana_datasources.yaml").read_text())["datasources"][0]
    assert dashboard["editable"] is False
    assert len({panel["id"] for panel in panels()}) == len(panels())
    places: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["type"] in ("stat", "table", "timeseries")
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & places, panel["title"]
        places |= cells
    assert all(target["datasource"]["uid"] == source["uid"] for target in targets())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_metric_that_is_named_exists_with_its_labels(prometheus: Prometheus) -> None:
    expressions = [target["expr"] for target in targets()] + [rule["expr"] for rule in rules()]
    named = {selector for expression in expressions for selector in SELECTOR.findall(expression)}
    assert len(named) > 20
    assert [selector for selector in sorted(named) if not prometheus.query(selector)] == []


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    for target in targets():
        series = prometheus.query(target["expr"])
        if "ALERTS" not in target["expr"]:
            assert series, target["expr"]
        labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert all(labels <= set(one["metric"]) for one in series), target
    done = prometheus.query('cosmic_scans_total{dag="transfer_auto_recon"}')
    assert {one["metric"]["result"]: one["value"][1] for one in done} == {"success": "1", "failed": "1"}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_prometheus_takes_the_rules_and_one_failed_scan_is_no_alert(prometheus: Prometheus) -> None:
    began = datetime.now(UTC)  # an earlier evaluation may have been before the metrics were there

    def evaluated() -> bool:
        (group,) = prometheus.get("/api/v1/rules")["groups"]
        return all(
            rule["health"] == "ok" and datetime.fromisoformat(rule["lastEvaluation"]) > began
            for rule in group["rules"]
        )

    assert wait_until(evaluated, 120)
    names = {alert["labels"]["alertname"] for alert in prometheus.get("/api/v1/alerts")["alerts"]}
    assert names <= {"ComponentSilent"}  # this Airflow has been stopped


def documented() -> list[re.Pattern[str]]:
    """Our metrics in the documents; `<dag>` is any word, `.files` another end of the name before."""
    text = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `cosmic.")]
    names: list[str] = []
    for name in (name for row in rows for name in re.findall(r"`([^`]+)`", row)):
        names.append(names[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    return [re.compile(re.sub("<.*?>", "[^.]+", name)) for name in names]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_documents_name_what_is_sent(statsd: StatsdServer) -> None:
    sent = {line.rpartition(":")[0].removeprefix("airflow.") for line in statsd.lines}
    ours = {name for name in sent if name.startswith("cosmic.")}
    names = documented()
    assert [name for name in sorted(ours) if not any(p.fullmatch(name) for p in names)] == []
    assert [p.pattern for p in names if not any(p.fullmatch(name) for name in ours)] == []
