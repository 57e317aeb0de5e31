"""A real Prometheus, Pushgateway and promtool for tests, on 127.0.0.1 only: Debian's packages, by `make prometheus`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

from servers import HOST, free_ports, kill_group, wait_for_http

ROOT = Path(__file__).parents[1]


def program(name):
    """Return the path of a program of Prometheus."""
    own = ROOT / ".venv" / "share" / "prometheus" / "usr" / "bin"
    found = shutil.which(name, path=os.pathsep.join((str(own), os.environ["PATH"])))
    if found is None:
        raise RuntimeError(f"no program `{name}`: make prometheus, or on other systems than Debian install Prometheus")
    return found


def promtool(*words, stdin=None):
    """Run promtool and return its exit code with what it printed."""
    done = subprocess.run([program("promtool"), *map(str, words)], input=stdin, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def get(url):
    """Return what *url* answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@contextmanager
def _served(words, port):
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="spot-monitoring-"))
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, cwd=directory, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        stack.callback(kill_group, process)
        wait_for_http(port, process, log)
        yield f"http://{HOST}:{port}"


@contextmanager
def pushgateway():
    """Run a Pushgateway and yield its URL."""
    (port,) = free_ports(1)
    with _served([program("prometheus-pushgateway"), f"--web.listen-address={HOST}:{port}"], port) as url:
        yield url


@contextmanager
def prometheus(targets, rules=()):
    """Run a Prometheus that reads *targets* (HOST:PORT) twice a second, with files of rules. Yield its URL."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="spot-prometheus-") as directory:
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(each) for each in rules],
            "scrape_configs": [{"job_name": "training", "static_configs": [{"targets": list(targets)}]}],
        }
        file = Path(directory) / "prometheus.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        words = [program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={directory}/data"]
        with _served([*words, f"--web.listen-address={HOST}:{port}", "--log.level=warn"], port) as url:
            yield url


def query(url, expression):
    """Return what the Prometheus at *url* has now for *expression*: pairs of labels and value."""
    answer = json.loads(get(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
    assert answer["status"] == "success", answer
    return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]
