"""All providers of prices against one suite: right rows from right answers, one line for each kind of wrong one."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
import threading
from datetime import datetime, timezone

import markets
import pytest
from markets import HOSTS, SECRET, MarketServer

from spot_plugins.market import cache, catalogue, threads
from spot_plugins.market.ask import PROVIDERS, ask
from spot_plugins.market.base import Interruption, Query

QUERY = Query("H100", 8)
NAMES = [provider.name for provider in PROVIDERS]
UNTIMELY = ("hang", "drip of the head", "drip of the body")
REASONS = {
    "503": "status 503",
    "429": "status 429, and asks to wait 30 s",
    **dict.fromkeys(UNTIMELY, "the answer does not come in time"),
    "cut off": "the answer is cut off",
    "half of a document": ("bytes is not JSON", "bytes is not XML", "the version of the list is no date"),
    "other types": ("the answer is not as documented: ", "is not XML"),
    "huge": "the answer is larger than 16 MiB",
    "redirect": "status 302, which leads to another address. It is not followed",
    "no HTTP": "the connection fails",
}
"""By fault, what its line says."""

RATE = Interruption(low=0.05, high=0.10, days=30.0, source="AWS Advisor")
OPEN_RATE = Interruption(low=0.20, high=None, days=30.0, source="AWS Advisor")
GOOGLE_SPOT = 8 * 2.5 + 208 * 0.01 + 1872 * 0.001 + 6000 * 0.073 / 730
GOOGLE_ON_DEMAND = 8 * 9 + 208 * 0.02 + 1872 * 0.002 + 6000 * 0.146 / 730
DISK = 32 * 0.15 / 720

ROWS = {
    "vast": {("Sweden, SE", 12 + DISK, 16 + DISK, True, None, None)},
    "runpod": {("secure cloud", None, 8 * 2.99, True, "HIGH", None)},
    "lambda": {("us-west-1", None, 23.92, True, None, None)},
    "aws": {
        ("us-east-1a", 23.6, None, True, "score 3 of 10", RATE),
        ("us-east-1b", 25.0, None, False, None, RATE),
        ("eu-north-1a", 14.4, None, True, "score 1 of 10", OPEN_RATE),
    },
    "azure": {("eastus", 19.66, 98.32, False, None, None)},
    "gcp": {("us-central1", GOOGLE_SPOT, GOOGLE_ON_DEMAND, False, None, None)},
    "catalogue": {
        ("us-east-1", None, 98.32, False, None, None),
        ("us-ashburn-1", 40.0, 80.0, False, None, None),
    },
}
"""By provider: region, price as spot and on demand, whether it is live, stock and interruptions."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The services, with the environment of a user who has a key for each of them."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    catalogue._newest.clear()
    with MarketServer(tmp_path) as server:
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        yield server


def rows_of(answer):
    """Return the figures of *answer*, rounded as money is."""
    assert not isinstance(answer, str), answer
    return {
        (
            each.region,
            each.spot_per_hour and round(each.spot_per_hour, 6),
            each.on_demand_per_hour and round(each.on_demand_per_hour, 6),
            each.is_live,
            each.stock,
            each.interruption,
        )
        for each in answer.offers
    }


def wanted(name):
    return {(a, b and round(b, 6), c and round(c, 6), *rest) for a, b, c, *rest in ROWS[name]}


def fail(server, name, fault):
    server.faults.update(dict.fromkeys(HOSTS[name], fault))


def test_every_provider_gives_its_rows(server):
    """Price of the whole machine, with what the provider knows of stock and interruptions, its address and the time."""
    before = datetime.now(timezone.utc)

    results = ask(QUERY)

    assert {name: rows_of(results[name]) for name in NAMES} == {name: wanted(name) for name in NAMES}
    listed = results.pop("catalogue").offers
    assert {offer.provider for offer in listed} == {"aws", "oci"}
    assert {offer.answered_at for offer in listed} == {datetime(2026, 11, 28, tzinfo=timezone.utc)}, "that of the list"
    assert all(offer.source.endswith(f"/v3/{offer.provider}/20261128-42/catalog.zip") for offer in listed)
    offers = [offer for answer in results.values() for offer in answer.offers]
    assert {(offer.gpu, offer.count) for offer in offers} == {("H100", 8)}
    assert all(before <= offer.answered_at <= datetime.now(timezone.utc) for offer in offers)
    assert all(any(host in offer.source for host in HOSTS[offer.provider]) for offer in offers)
    notes = {name: answer.notes for name, answer in results.items() if answer.notes}
    assert notes == {"aws": ["1 of 3 regions give no prices: ap-east-1 (AuthFailure)"]}
    discounts = {offer.provider: offer.discount for offer in offers if offer.region in ("eu-north-1a", "eastus")}
    assert discounts == {"aws": 0.68, "azure": 1 - 19.66 / 98.32}


@pytest.mark.parametrize("fault", REASONS)
@pytest.mark.parametrize("name", NAMES)
def test_one_that_fails_costs_its_own_rows_and_one_line(server, name, fault):
    """The others' rows are all there, and no key is in the line."""
    fail(server, name, fault)
    providers = [
        dataclasses.replace(each, limit_s=0.25) if each.name == name and fault in UNTIMELY else each
        for each in PROVIDERS
        if each.name in (name, "vast", "azure")
    ]

    results = ask(QUERY, providers)

    reasons = REASONS[fault]
    reasons = (reasons,) if isinstance(reasons, str) else reasons
    assert isinstance(results[name], str)
    assert any(reason in results[name] for reason in reasons), results[name]
    others = [each.name for each in providers if each.name != name]
    assert {other: rows_of(results[other]) for other in others} == {other: wanted(other) for other in others}
    assert SECRET not in results[name]
    assert not server.asked(markets.ELSEWHERE)


def test_each_key_goes_to_its_own_provider_alone_and_stays_nowhere(server, tmp_path):
    """No other host gets it, no address contains it, and no cache file does."""
    ask(QUERY)

    owners = {
        value: next(n for n in HOSTS if n[:3] == name[:3].lower())
        for name, value in markets.KEYS.items()
        if "AWS" not in name and "GOOGLE" not in name
    }
    owners |= {markets.KEYS["GOOGLE_API_KEY"]: "gcp", markets.AWS_SECRET: ""}
    sent = [(request.host, request.path, str(request.headers)) for request in server.requests]
    for key, owner in owners.items():
        hosts = {host for host, _, headers in sent if key in headers}
        assert hosts == set(HOSTS.get(owner, ())), owner
        assert not any(key in path for _, path, _ in sent)
    files = list(cache.folder().iterdir())
    assert len(files) == len(NAMES)
    assert all(SECRET not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_answers_are_kept_for_a_while_and_fresh_ones_asked_for(server):
    """Within minutes the same question asks nobody, and its rows have the time of the answer."""
    first = ask(QUERY)
    num_asked = len(server.requests)

    assert ask(QUERY) == {name: cached(answer) for name, answer in first.items()}
    assert len(server.requests) == num_asked
    ask(Query("H100", 4))
    assert len(server.requests) > num_asked
    server.faults["prices.azure.com"] = "503"
    assert isinstance(ask(QUERY, fresh=True)["azure"], str)


def cached(answer):
    """Return *answer* as it comes out of the cache: times have seconds."""
    offers = [dataclasses.replace(each, answered_at=each.answered_at.replace(microsecond=0)) for each in answer.offers]
    return dataclasses.replace(answer, offers=offers)


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "missing"])
def test_a_key_that_is_refused_or_missing_is_a_line(server, refused, monkeypatch):
    """It names what to set, and the providers that need no key give their rows."""
    for name in markets.KEYS:
        monkeypatch.setenv(name, "no-such-key") if refused else monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    results = ask(QUERY)

    lines = {name: result for name, result in results.items() if isinstance(result, str)}
    assert rows_of(results["vast"]) == wanted("vast")
    assert rows_of(results["azure"]) == wanted("azure")
    assert lines.keys() == {"runpod", "lambda", "aws", "gcp"}
    if refused:
        assert "status 401" in lines["runpod"]
        assert lines["aws"] == "AuthFailure"
    else:
        told = "no key, so its offers are left out: set LAMBDA_API_KEY or write ~/.lambda_cloud/lambda_keys"
        assert lines["lambda"] == told
        assert lines["aws"].startswith("no credentials, so its offers are left out: set AWS_PROFILE, or")


def test_keys_are_read_from_the_files_of_the_providers_own_tools(server, tmp_path, monkeypatch):
    """A file with the key alone, and files with a line api_key = KEY."""
    files = {
        "VAST_API_KEY": (".config/vastai/vast_api_key", "{}\n"),
        "RUNPOD_API_KEY": (".runpod/config.toml", '[default]\napi_key = "{}"\n'),
        "LAMBDA_API_KEY": (".lambda_cloud/lambda_keys", "api_key = {}\n"),
    }
    for name, (path, text) in files.items():
        monkeypatch.delenv(name)
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text.format(markets.KEYS[name]))

    results = ask(QUERY)

    assert {name: rows_of(results[name]) for name in NAMES} == {name: wanted(name) for name in NAMES}
    (request,) = server.asked(markets.VAST)
    assert request.headers["Authorization"] == f"Bearer {markets.KEYS['VAST_API_KEY']}"


def test_a_key_with_a_line_break_is_refused_without_being_shown(server, monkeypatch):
    """The library that would refuse it prints it."""
    monkeypatch.setenv("RUNPOD_API_KEY", f"a\n{SECRET}")

    (line,) = ask(QUERY, [each for each in PROVIDERS if each.name == "runpod"]).values()

    told = "the key in RUNPOD_API_KEY has a space, a line break or another character that no key has"
    assert line == told


@pytest.mark.parametrize("fault", ["503", "half of a document", "other types"])
def test_without_the_advisor_the_prices_of_the_own_region_remain(server, fault):
    """The Advisor says in which regions a machine is sold; without it, the user's region is asked."""
    server.faults[markets.ADVISOR] = fault

    answer = ask(QUERY)["aws"]

    assert {(offer.region, offer.interruption) for offer in answer.offers} == {
        ("us-east-1a", None),
        ("us-east-1b", None),
    }
    assert [note[:22] for note in answer.notes] == ["no interruption rates:"]


@pytest.mark.parametrize("host", [markets.ADVISOR, markets.EC2[1]])
def test_one_host_of_aws_that_hangs_leaves_time_for_the_others(server, host):
    """It gets a part of the time, not all of it."""
    server.faults[host] = "hang"
    aws = next(each for each in PROVIDERS if each.name == "aws")

    answer = ask(QUERY, [dataclasses.replace(aws, limit_s=5.0)])["aws"]

    assert not isinstance(answer, str), answer
    places = {(offer.region, offer.stock) for offer in answer.offers}
    assert places == {("us-east-1a", "score 3 of 10"), ("us-east-1b", None)}
    assert any("the answer does not come in time" in note for note in answer.notes)


def test_one_list_of_the_catalogue_that_is_down_costs_its_own_rows(server):
    """Also one whose archive is damaged, lacks the list, or is no list; the rows of the others remain."""
    archives = {
        "aws": b"no archive",
        "azure": markets.catalogue_zip("other", []),
        "gcp": markets.catalogue_zip("gcp", ['"a"b,c']),
        "nebius": markets.catalogue_zip("nebius", ["x,y,9,1,1,8,H100,80,perhaps,,,"]),
        "verda": markets.catalogue_zip("verda", ["x,y,0,1,1,8,H100,80,True,,,"]),
        "lambdalabs": markets.catalogue_zip("lambdalabs", ["x,y,9,1,1,8,H100,80,False,,,"] * 2),
    }

    def answer(request):
        _, _, name, *rest = request.path.split("/")
        if name == "runpod":
            return 503, b""
        return (200, archives[name]) if name in archives and rest != ["version"] else markets.answer_catalogue(request)

    server.answers[markets.CATALOGUE] = answer

    found = ask(QUERY, [each for each in PROVIDERS if each.name == "catalogue"])["catalogue"]

    assert {(offer.provider, offer.per_hour) for offer in found.offers} == {("oci", 40.0), ("lambda", 9.0)}
    assert found.notes == [
        "aws is left out: the answer of 10 bytes is no archive with aws.csv",
        f"azure is left out: the answer of {len(archives['azure'])} bytes is no archive with azure.csv",
        "gcp is left out: gcp.csv is no list of comma-separated values",
        "nebius is left out: no row of the answer can be read: spot='perhaps' must be true or false",
        "runpod is left out: the provider answers with status 503",
        "verda is left out: no row of the answer can be read: price=0 must be above 0",
    ]


def test_a_list_is_fetched_once(server):
    """The rounds of a watch ask for its version alone, until that is another one."""
    only = [each for each in PROVIDERS if each.name == "catalogue"]
    for _ in range(3):
        assert rows_of(ask(QUERY, only, fresh=True)["catalogue"]) == wanted("catalogue")
    fetched = [request.path for request in server.asked(markets.CATALOGUE) if request.path.endswith(".zip")]
    assert len(fetched) == len(set(fetched)) == 9

    def newer(request):
        _, _, name, *rest = request.path.split("/")
        if rest == ["version"]:
            return 200, b"20261129-1"
        return 200, markets.catalogue_zip(name, ["x,y,7,1,1,8,H100,80,True,,,"])

    server.answers[markets.CATALOGUE] = newer
    found = ask(QUERY, only, fresh=True)["catalogue"]
    assert {offer.per_hour for offer in found.offers} == {7.0}
    assert {offer.answered_at.day for offer in found.offers} == {29}


def test_a_list_that_would_fill_the_memory_is_refused(server, monkeypatch):
    """A small archive may hold a large list."""
    monkeypatch.setattr(catalogue, "_MAX_CSV_BYTES", 2 * 1024**2)
    bomb = markets.catalogue_zip("oci", ["x" * 3 * 1024**2])
    assert len(bomb) < 10_000
    server.answers[markets.CATALOGUE] = lambda request: (
        (200, bomb) if request.path.endswith("oci/20261128-42/catalog.zip") else markets.answer_catalogue(request)
    )

    found = ask(QUERY, [each for each in PROVIDERS if each.name == "catalogue"])["catalogue"]

    assert found.notes == ["oci is left out: the list is larger than 2 MiB"]


def test_without_placement_scores_the_prices_remain(server):
    """A user may lack the right to ask for scores; then no row is said to be live."""

    def without_scores(request):
        if b"GetSpotPlacementScores" in request.body:
            return 403, markets._ec2_error("UnauthorizedOperation", "You are not authorized")
        return markets.answer_ec2(request)

    server.answers.update(dict.fromkeys(markets.EC2, without_scores))

    answer = ask(QUERY)["aws"]

    assert {(offer.region, offer.is_live) for offer in answer.offers} == {(row[0], False) for row in ROWS["aws"]}
    assert answer.notes[1:] == ["no placement scores: UnauthorizedOperation"]


def test_pages_without_an_end_are_given_up(server):
    """A service that always names one more page does not keep the user."""
    more = {"Items": [], "NextPageLink": f"https://{markets.AZURE}/api/retail/prices?$skip=1"}
    server.answers[markets.AZURE] = lambda request: (200, more)
    server.answers[markets.GOOGLE] = lambda request: (200, {"skus": [], "nextPageToken": "again"})
    server.answers.update(dict.fromkeys(markets.EC2, lambda request: (200, markets._xml("R", "S", [], "again"))))

    results = ask(QUERY)

    assert {name: results[name] for name in ("azure", "gcp", "aws")} == {
        "azure": "the answer has more than 20 pages",
        "gcp": "the answer has more than 20 pages",
        "aws": "the answer has more than 5 pages",
    }


def test_a_page_on_another_host_is_not_asked_for(server):
    """An answer must not send us anywhere."""
    elsewhere = {"Items": [], "NextPageLink": f"https://{markets.ELSEWHERE}/"}
    server.answers[markets.AZURE] = lambda request: (200, elsewhere)

    assert ask(QUERY)["azure"] == "the next page of the answer is on another host, which is not asked"
    assert not server.asked(markets.ELSEWHERE)


def test_a_region_that_leads_elsewhere_gets_no_request(server):
    """The name of a region is part of an address, and a signed request carries a session token."""
    regions = {"us-east-1": markets.ADVICE["spot_advisor"]["us-east-1"]}
    regions |= dict.fromkeys((f"{markets.ELSEWHERE}/", f"x@{markets.ELSEWHERE}#", "../"), regions["us-east-1"])
    server.answers[markets.ADVISOR] = lambda request: (200, {**markets.ADVICE, "spot_advisor": regions})

    answer = ask(QUERY)["aws"]

    assert {offer.region for offer in answer.offers} == {"us-east-1a", "us-east-1b"}
    assert answer.notes == []


def test_a_certificate_of_somebody_else_is_refused(server, monkeypatch):
    """No key is sent to a server that only says that it is the provider."""
    monkeypatch.delenv("SSL_CERT_FILE")

    results = ask(QUERY)

    assert all("CERTIFICATE_VERIFY_FAILED" in line for line in results.values())
    assert server.requests == []


def test_answers_that_cannot_be_kept_are_rows_all_the_same(server, tmp_path, monkeypatch):
    """Of a user without a home, or with a full disk."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    answer = ask(QUERY, [each for each in PROVIDERS if each.name == "vast"])["vast"]

    assert rows_of(answer) == wanted("vast")
    assert [note.partition(": ")[0] for note in answer.notes] == [f"the answer cannot be kept in {cache.folder()}"]


def test_without_botocore_a_line_says_what_to_install(server, monkeypatch):
    """The package brings it, but an installation may lack it."""
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    (line,) = ask(QUERY, [each for each in PROVIDERS if each.name == "aws"]).values()
    assert line == "its requests need botocore: pip install botocore"


def test_a_document_without_its_list_is_not_taken_for_no_offers(server):
    """No rows would be no news."""
    server.answers[markets.LAMBDA] = lambda request: (200, {"error": "none"})
    server.answers[markets.VAST] = lambda request: (200, {"error": "none"})

    results = ask(QUERY)

    assert results["lambda"] == "the answer is not as documented: data is missing"
    assert results["vast"] == "the answer is not as documented: offers is missing"


def test_a_mistake_in_one_provider_is_a_line():
    """Ours or theirs: the rows of the others are more than a traceback."""

    def find(until):
        raise TypeError("secret-7f3a")

    results = threads.in_parallel({"bad": (9.0, find), "good": (9.0, lambda until: "rows")})

    assert str(results["bad"]) == "the answer has a form that nobody expected: TypeError"
    assert results["good"] == "rows"


def test_a_call_that_never_ends_is_left_behind():
    """A name that is never resolved has no time limit of its own."""
    over = threading.Event()
    calls = {"stuck": (0.0, lambda until: over.wait(60)), "well": (60.0, lambda until: "rows")}

    results = threads.in_parallel({"stuck": calls["stuck"]})

    over.set()
    assert str(results["stuck"]) == "no answer within 0 s"
    assert threads.in_parallel({"well": calls["well"]}) == {"well": "rows"}
