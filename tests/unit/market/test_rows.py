"""Offers as documents: in the cache, in a user's file, in a table."""

from __future__ import annotations

import json
import os
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from spot_plugins.economics import Lease, TrainingRun, replay
from spot_plugins.market import cache, rows, table
from spot_plugins.market.base import Answer, Interruption, Offer, Query
from spot_plugins.market.useful import Figures, useful_price, useful_share

QUERY = Query("H100", 8)
AT = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
RATE = Interruption(low=0.05, high=0.1, days=30.0, source="AWS Advisor")
FIGURES = Figures(checkpoint_bytes=80e9, upload_bytes_per_s=1e9, step_s=10, restart_s=300)


def offer(spot: float | None = 16.0, on_demand: float | None = 32.0, **changes: Any) -> Offer:
    """Return an offer of 8 GPUs."""
    values = {
        **{"provider": "vast", "region": "Sweden, SE", "instance": "H100 SXM #1", "gpu": "H100", "count": 8},
        **{"is_live": True, "stock": "HIGH", "source": "https://console.vast.ai/", "answered_at": AT},
    }
    return Offer(spot_per_hour=spot, on_demand_per_hour=on_demand, **{**values, **changes})


OFFERS = [
    offer(),
    offer(None, 20.0, stock=None),
    offer(8.0, None, interruption=RATE, listed_discount=0.6, is_live=False),
]


def test_an_offer_comes_back_as_it_was() -> None:
    """From the document of each, through JSON."""
    assert [rows.offer_of(json.loads(json.dumps(rows.document_of(each)))) for each in OFFERS] == OFFERS


def test_what_is_printed_can_be_read_again(tmp_path: Path) -> None:
    """The output of --json is a file for --from; computed fields in it are not believed."""
    document = table.document(OFFERS, FIGURES, {}, AT + timedelta(hours=2))
    document["offers"][0]["dollars_per_gpu_hour"] = 0.01
    path = tmp_path / "offers.json"
    path.write_text(json.dumps(document))

    assert rows.read_file(str(path), QUERY) == OFFERS
    assert document["offers"][0]["age_s"] == 7200
    assert set(document["offers"][0]) - set(rows.document_of(OFFERS[0])) == set(rows.COMPUTED)


CSV = "provider,region,gpu,gpus,spot_dollars_per_hour,live,interruption_low,interruption_days,interruption_source,"
CSV += "answered_at\n"


def test_a_csv_file_is_read_and_filtered(tmp_path: Path) -> None:
    """Empty cells are missing, numbers are numbers, and only the GPUs that are looked for are kept."""
    path = tmp_path / "offers.csv"
    path.write_text(
        CSV
        + "mine,rack 1,H100 SXM,8,12.5,true,0.2,30,my log,2026-11-29T12:00:00Z\n"
        + "mine,rack 2,h100,4,6,,,,,2026-11-29T12:00:00Z\n"
        + "mine,rack 3,A100,8,6,,,,,2026-11-29T12:00:00Z\n"
    )

    (found,) = rows.read_file(str(path), QUERY)

    assert (found.region, found.per_gpu_hour, found.is_live, found.source) == ("rack 1", 1.5625, True, str(path))
    assert found.interruption == Interruption(low=0.2, high=None, days=30.0, source="my log")


GOOD = rows.document_of(offer())


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**GOOD, "gpus": 0}, "offer 1: gpus=0 must be a whole number from 1 to 1024"),
        ({**GOOD, "gpu": "H1000"}, "offer 1: gpu='H1000' must be one of B300, B200,"),
        ({**GOOD, "price": 3}, "offer 1: 'price' is no field of an offer"),
        (
            {**GOOD, "spot_dollars_per_hour": "-3"},
            "offer 1: spot_dollars_per_hour='-3' must be a number from 0 to 100000",
        ),
        ({**GOOD, "spot_dollars_per_hour": 0}, "offer 1: spot_dollars_per_hour=0 must be above 0"),
        (
            {**GOOD, "spot_dollars_per_hour": None, "on_demand_dollars_per_hour": ""},
            "offer 1: spot_dollars_per_hour or on_demand_dollars_per_hour is missing",
        ),
        ({**GOOD, "answered_at": "2026-11-29 12:00"}, "must be a time with its zone, such as 2026-11-29T12:00:00Z"),
        ({key: GOOD[key] for key in GOOD if key != "answered_at"}, "offer 1: answered_at is missing"),
        ({**GOOD, "live": "maybe"}, "offer 1: live='maybe' must be true or false"),
        ({**GOOD, "region": "a\x1b[2J"}, "must be a short text without control characters"),
        ({**GOOD, "interruption_low": 0.1}, "offer 1: interruption_days=None must be a number"),
        ({**GOOD, "interruption_low": 5}, "offer 1: interruption_low=5 must be a number from 0 to 1"),
        (7, "offer 1: an offer must be an object"),
    ],
)
def test_a_wrong_row_is_named(row: Any, says: str, tmp_path: Path) -> None:
    """With the file, the number of the row, the field, its value and what it must be."""
    path = tmp_path / "offers.json"
    path.write_text(json.dumps([row]))

    with pytest.raises(rows.RowsError) as caught:
        rows.read_file(str(path), QUERY)

    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"{", "is not JSON: Expecting property name"),
        ("a.txt", CSV.encode(), "A file of comma-separated values needs a name in .csv"),
        ("a.json", b"3", "must be a list of offers, or an object with version and offers"),
        ("a.json", b'{"version": 1}', "must be a list of offers, or an object with version and offers"),
        ("a.json", b'{"version": 2, "offers": []}', "version=2 must be 1"),
        ("a.json", b"\xff", "is not text in UTF-8"),
        ("a.json", b" " * (16 * 1024**2 + 1), "is larger than 16 MiB"),
        ("a.csv", CSV.encode() + b"mine,rack\n", "offer 1 has more or fewer values than the first line has names"),
        ("a.csv", CSV.encode() + b'"a"b,"', "is not comma-separated"),
        ("a.csv", b"provider,price\nmine,3\n", "offer 1: 'price' is no field of an offer"),
        ("none.json", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_another_form_is_refused(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(rows.RowsError) as caught:
        rows.read_file(str(path), QUERY)

    assert says in str(caught.value)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.store("vast", QUERY, Answer(OFFERS, ["a note"]))
    (path,) = cache.folder().iterdir()
    return path


def test_the_cache_gives_back_what_was_kept(own_cache: Path) -> None:
    """For the same provider and question alone, from a file that nobody else can read."""
    assert cache.load("vast", QUERY) == Answer(OFFERS, ["a note"])
    assert cache.load("azure", QUERY) is None
    assert cache.load("vast", Query("H100")) is None
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o600
    assert stat.S_IMODE(own_cache.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("seconds", [-60, cache.MAX_AGE_S + 1])
def test_an_old_answer_is_asked_for_again(own_cache: Path, seconds: float) -> None:
    """Also one from the future, which a wrong clock has written."""
    document = json.loads(own_cache.read_text())
    stored_at = datetime.fromisoformat(document["stored_at"]) - timedelta(seconds=seconds)
    own_cache.write_text(json.dumps({**document, "stored_at": stored_at.isoformat()}))

    assert cache.load("vast", QUERY) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b'{"version": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_of_the_cache_is_no_answer(own_cache: Path, content: bytes) -> None:
    own_cache.write_bytes(content)
    assert cache.load("vast", QUERY) is None


def test_a_relative_cache_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification says to ignore it."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", "/home/me")
    assert os.fspath(cache.folder()) == "/home/me/.cache/spot_plugins/prices"


def test_offers_are_in_the_order_of_their_prices_per_gpu() -> None:
    """A machine with one GPU is not cheaper than one with eight because it is smaller."""
    small, large, fixed = offer(3.0, count=1), offer(16.0), offer(None, 20.0)
    assert table.in_order([small, fixed, large], None) == [large, fixed, small]


def test_offers_are_in_the_order_of_useful_hours() -> None:
    """One that is often taken back loses to a dearer one, and one whose rate is unknown comes last."""
    often = offer(15.0, interruption=Interruption(low=0.9, high=0.99, days=0.1, source="log"))
    rarely, unknown, fixed = offer(16.0, interruption=RATE), offer(8.0), offer(None, 17.0)

    assert table.in_order([unknown, often, fixed, rarely], FIGURES) == [rarely, fixed, often, unknown]
    assert useful_price(fixed, FIGURES) == 17 / 8
    assert useful_price(unknown, FIGURES) is None


def test_the_useful_share_is_that_of_a_replay() -> None:
    """Against the simulation, on 5,000 leases that end at random."""
    import random

    draw = random.Random(7)
    mean_s = 3600.0
    leases = [Lease(draw.expovariate(1 / mean_s)) for _ in range(5_000)]
    run = TrainingRun(step_s=10, save_s=0, push_s=80, restart_s=300, every_s=120)

    assert useful_share(Figures(**as_dict(FIGURES), every_s=120), 1 / mean_s) == pytest.approx(
        replay(run, leases).goodput, rel=0.02
    )


def as_dict(figures: Figures) -> dict[str, float]:
    return {name: getattr(figures, name) for name in ("checkpoint_bytes", "upload_bytes_per_s", "step_s", "restart_s")}


def test_the_limits_of_the_useful_share() -> None:
    """All of the time without interruptions, none if a machine never lasts until a save."""
    assert useful_share(FIGURES, 0.0) == 1.0
    assert useful_share(FIGURES, 1e-9) == pytest.approx(1.0, abs=1e-5)
    assert useful_share(FIGURES, 1.0) == pytest.approx(0.0, abs=1e-9)
    assert useful_share(FIGURES, 1e6) == 0.0


def test_the_table_says_what_is_known_and_what_is_not() -> None:
    """Both prices, discount, source and period of the rate, live or listed, and the age of each row."""
    head, *lines = table.lines_of(OFFERS, None, AT + timedelta(minutes=5))

    assert head.split("  ")[0] == "$/GPU-H"
    assert [" ".join(line.split()) for line in lines] == [
        "2.000 16.00 50% 8x H100 vast Sweden, SE H100 SXM #1 spot live, HIGH unknown 5 min console.vast.ai",
        "2.500 20.00 - 8x H100 vast Sweden, SE H100 SXM #1 on-demand live - 5 min console.vast.ai",
        "1.000 8.00 60% 8x H100 vast Sweden, SE H100 SXM #1 spot listed, HIGH 5-10%/month (AWS Advisor) 5 min "
        "console.vast.ai",
    ]
