"""The page of ``spot report`` in a real browser: on a screen, on a phone, in the dark and in print."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from event_logs import BEGAN_AT, write_log
from hearing import DEADLINE_S
from matplotlib import image

from spot_plugins.eventlog.reading import read_event_log
from spot_plugins.eventlog.records import Heartbeat, Started, TrainingBegan
from spot_plugins.events import Committed, Leaving, NoticeReceived, Staged
from spot_plugins.monitor.figures import Prices, report_of
from spot_plugins.monitor.page import page_of
from spot_plugins.store import MemoryStore

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("pdftotext")), reason="needs a browser"),
]

# Tells in its title by how many pixels the page, and then each of its tables, is wider than its place.
FRAME = """<!doctype html><title>not loaded</title>
<iframe id="frame" style="width: {width}px; height: 3000px; border: 0" src="report.html"></iframe><script>
frame.onload = () => {{ const page = frame.contentDocument; document.title = "beyond: " + [page.documentElement,
  ...page.querySelectorAll(".scroll")].map(each => each.scrollWidth - each.clientWidth).join(" "); }}
</script>"""


def browser(page, *options):
    """Open *page* without a window. Return what the browser prints."""
    words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    words += ["--allow-file-access-from-files", *options, page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout


def beyond(folder, width):
    """Return by how many pixels the page and its tables are too wide in a window of *width*."""
    frame = folder / f"{width}.html"
    frame.write_text(FRAME.format(width=width))
    found = re.search("<title>beyond: (.*)</title>", browser(frame, "--dump-dom"))
    assert found, "the page is not loaded"
    return [int(each) for each in found[1].split()]


@pytest.fixture
def page(tmp_path):
    """The page of a run that got a notice twice, with prices, at a long URL."""
    store = MemoryStore()
    for number in (1, 2):
        at, step = 1000.0 * number, 10_000 * number
        lines = [
            (at, Started(process_s=20.0)),
            (at + 5, TrainingBegan(step=step)),
            (at + 900, Staged(step=step + 900, trigger="steps", num_bytes=10, stall_s=0.5, copy_s=1.0)),
            (at + 904, Committed(step=step + 900, num_bytes=10, push_s=4.0)),
            (at + 950, NoticeReceived(source="the metadata service of Google Cloud", grace_s=30.0, kind="hard")),
            (at + 951, Leaving(step=step + 950, durable=True, left_s=20.0)),
            (at + 952, Heartbeat(step=step + 950)),
        ]
        write_log(store, number, lines)
    url = f"s3://bucket/{'a-long-name/' * 10}run"
    file = tmp_path / "report.html"
    file.write_text(page_of(report_of(url, read_event_log(store), Prices(2.0, 4.0), BEGAN_AT * 2)))
    return file


def test_nothing_is_cut_off_on_a_screen(page):
    """All tables have room in a common window. On a phone they scroll, and the page itself does not."""
    assert set(beyond(page.parent, 1200)) == {0}
    whole, *tables = beyond(page.parent, 390)
    assert whole == 0
    assert len(tables) >= 3


def test_light_and_dark(page):
    """The ground is light or dark, and the text is its opposite."""
    shots = {}
    for name, options in {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}.items():
        shot = page.with_name(f"{name}.png")
        browser(page, "--window-size=1200,900", f"--screenshot={shot}", *options)
        shots[name] = image.imread(shot)[..., :3].mean(axis=2)
    light, dark = shots["light"], shots["dark"]
    assert light[0, 0] > 0.9
    assert dark[0, 0] < 0.15
    assert light.min() < 0.3, "the text can be read"
    assert dark.max() > 0.8, "the text can be read"


def test_nothing_is_cut_off_in_print(page):
    """Each head of each table is on the paper."""
    paper = page.with_name("report.pdf")
    browser(page, f"--print-to-pdf={paper}")
    words = subprocess.run(["pdftotext", "-bbox", paper, "-"], capture_output=True, text=True, check=True).stdout
    width = float(re.search('page width="([0-9.]+)"', words)[1])
    ends = {word: float(end) for end, word in re.findall('xMax="([0-9.]+)" yMax="[0-9.]+">([^<]+)</word>', words)}
    assert {"UNTIL", "AGAIN"} <= {word.upper() for word in ends}
    assert max(ends.values()) < width
