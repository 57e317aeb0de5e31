"""A real Prometheus that reads a real training, a real Pushgateway, and the alerts and the dashboard in dashboards/."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from itertools import chain

import pytest
import yaml
from hearing import Heard, until, until_gone
from monitoring import ROOT, get, prometheus, promtool, pushgateway, query
from ports import free_port
from steps import Holder, state_of

from spot_plugins.config import SpotConfig
from spot_plugins.events import Committed, Resumed
from spot_plugins.market.textfile import AVAILABLE, LIMIT, PRICE
from spot_plugins.monitor.instruments import NAMES
from spot_plugins.monitor.prometheus import Metrics
from spot_plugins.session import SpotSession

DASHBOARDS = ROOT / "dashboards"
ALERTS = DASHBOARDS / "alerts.yaml"


def life(url, steps, *targets, finishes=False, look=lambda: None):
    """Train in this process, and save each of *steps*. Call *look* before the end."""
    heard = Heard()
    with SpotSession(SpotConfig(url=url, every_steps=10**6), on_event=[heard, Metrics(*targets)]) as session:
        holder = Holder(state_of(0))
        session.register("part", holder, replicated=("both",))
        resumed = session.resume()
        for step in steps:
            holder.state = state_of(step)
            session.after_step(step)
            session.save(step)
            heard.wait(Committed, step=step)
        look()
        pid = session._opened.pusher.pid
        if finishes:
            session.finish(steps[-1])
    until_gone(pid)
    return resumed, heard


def test_a_training_seen_by_prometheus_and_a_pushgateway(tmp_path, monkeypatch):
    """
    Step 2 is damaged, so attempt 2 resumes from step 1, and the alert on a rejected resume fires. All expressions of
    the dashboard can be asked. The gateway keeps the metrics of a life that does not finish, until the run is finished.
    """
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    url, port = str(tmp_path / "run"), free_port()
    with pushgateway() as gateway, prometheus([f"127.0.0.1:{port}"], [ALERTS]) as server:
        life(url, [1, 2], gateway)
        assert re.search(rf'^spot_committed_step{{.*run="{url}"}} 2$', get(f"{gateway}/metrics"), re.MULTILINE)
        for blob in (tmp_path / "run").rglob("*000002-000001*/*.safetensors"):
            blob.write_bytes(b"damaged" + blob.read_bytes()[7:])

        def look():
            found = until(lambda: query(server, "spot_step == 5"), "Prometheus has read step 5")
            [(labels, _)] = found
            assert (labels["run"], labels["rank"], labels["instance"]) == (url, "0", f"127.0.0.1:{port}")
            [(labels, _)] = query(server, "spot_run_info")
            assert labels["attempt"] == "2"
            fired = until(lambda: query(server, 'ALERTS{alertstate="firing"}'), "the alert fires")
            assert [labels["alertname"] for labels, _ in fired] == ["SpotResumeFailed"]
            until(lambda: query(server, "spot_goodput_ratio > 0"), "the figures of the run are there")
            assert query(server, "spot_lost_steps_total")[0][1] == 1
            for expression in expressions_of_the_dashboard():
                query(server, expression)

        resumed, heard = life(url, [2, 3, 4, 5], port, gateway, finishes=True, look=look)
        assert resumed == 1 == heard.wait(Resumed).step
        assert "spot_step" not in get(f"{gateway}/metrics")


def test_the_alerts():
    """promtool has a series for each alert that fires, and one for each that must not."""
    for name in ("alerts_test.yaml", "alerts_month_test.yaml"):
        code, printed = promtool("test", "rules", DASHBOARDS / name)
        assert code == 0, printed
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    tested = "".join((DASHBOARDS / name).read_text() for name in ("alerts_test.yaml", "alerts_month_test.yaml"))
    assert all(f"alertname: {rule['alert']}\n        exp_alerts" in tested for rule in rules)
    assert len(rules) == 6


def expressions_of_the_dashboard():
    """The expressions with values in place of the variables, which Grafana replaces before it asks."""
    found = json.loads((DASHBOARDS / "grafana.json").read_text())
    panels = [panel for panel in found["panels"] if panel["type"] != "row"]
    texts = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(texts) > 20
    return [text.replace("$run", ".*").replace("$__rate_interval", "1m") for text in texts]


def test_expressions_are_valid_and_name_metrics_that_exist(tmp_path):
    """promtool parses each expression of dashboard and alerts. Each name in one is a metric that something exports."""
    alerts = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    expressions = [*alerts, *expressions_of_the_dashboard()]
    rules = [{"record": f"test:number_{number}", "expr": each} for number, each in enumerate(expressions)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    code, printed = promtool("check", "rules", file)
    assert code == 0, printed
    known = NAMES | {PRICE, AVAILABLE, LIMIT}
    named = set(chain.from_iterable(re.findall(r"\bspot_\w+", each) for each in expressions))
    parts = {re.sub(r"_(sum|count|bucket)$", "", name) for name in named}
    assert parts <= known, parts - known


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the package for dashboards needs Python 3.11")
def test_the_dashboard_is_what_its_script_makes():
    """A change of the file by hand would be lost."""
    spec = importlib.util.spec_from_file_location("make_dashboard", DASHBOARDS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DASHBOARDS / "grafana.json").read_text() == module.dashboard()
    numbers = [panel["id"] for panel in json.loads(module.dashboard())["panels"]]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
