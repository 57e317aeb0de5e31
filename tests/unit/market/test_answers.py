"""Answers of providers in which one value is wrong: each provider leaves out a row, or fails with a reason."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from markets import ADVICE, AZURE_ITEM, LAMBDA_TYPE, RUNPOD_GPU, SKUS, VAST_OFFER

from spot_plugins.market import aws_advisor, azure, fields, gcp, lambda_cloud, runpod, vast, web
from spot_plugins.market.base import Answer, ProviderError, Query

QUERY = Query("H100", 8)
WRONG = [None, True, -1, 0, 7, 1e300, math.nan, "", "x", "\x1b[2J", "1e400", [], [[]], {}, {"a": 1}]

ADVISED = {"us-east-1": {"p5.48xlarge"}}
ANSWERS = {
    "vast": (vast.find, {"offers": [VAST_OFFER]}),
    "runpod": (runpod.find, {"gpus": [RUNPOD_GPU]}),
    "lambda": (lambda_cloud.find, {"data": {"a": LAMBDA_TYPE}}),
    "azure": (azure.find, {"Items": [AZURE_ITEM], "NextPageLink": None}),
    "gcp": (gcp.find, {"skus": SKUS[:4], "nextPageToken": ""}),
    "advisor": (lambda query, until: aws_advisor.fetch_advice(["p5.48xlarge"], until), ADVICE),
}


def places_in(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values in *document*."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path] * bool(path) + [place for key, value in inner for place in places_in(value, (*path, key))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return *document* with *value* at *path*."""
    document = copy.deepcopy(document)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


@pytest.mark.parametrize("name", ANSWERS)
def test_any_wrong_value_is_noticed_or_does_no_harm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each place of an answer, each of many wrong values: no other error, and no price that is not a number."""
    find, document = ANSWERS[name]
    for variable in ("RUNPOD_API_KEY", "LAMBDA_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(variable, "key")
    num_refused, num_offers = 0, 0
    for path in places_in(document):
        for value in WRONG:
            wrong = json.dumps(changed(document, path, value)).encode()
            monkeypatch.setattr(web, "fetch", lambda *_, wrong=wrong, **__: wrong)
            try:
                answer = find(QUERY, math.inf)
            except ProviderError as error:
                answer = Answer(notes=[str(error)])
            if isinstance(answer, Answer):
                num_refused += bool(answer.notes)
                assert all(note.isprintable() for note in answer.notes), (path, value)
                num_offers += len(answer.offers)
                for offer in answer.offers:
                    assert 0 < offer.per_gpu_hour < fields.MAX_PRICE, (path, value)
                    assert f"{offer.region}{offer.instance}{offer.stock}".isprintable(), (path, value)
    assert num_refused > 50
    assert num_offers > 50 or name == "advisor"


def test_one_bad_row_of_many_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others remain, and a line says how many are missing and why."""
    rows = [VAST_OFFER, {**VAST_OFFER, "min_bid": None}, {**VAST_OFFER, "min_bid": 0}]
    body = json.dumps({"offers": rows}).encode()
    monkeypatch.setattr(web, "fetch", lambda *_, **__: body)

    answer = vast.find(QUERY, math.inf)

    assert len(answer.offers) == 1
    told = "2 of 3 rows are left out: min_bid=None must be a number from 0 to 100000"
    assert answer.notes == [told]


def test_no_good_row_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """No offers and no error would look as if there were none."""
    body = json.dumps({"offers": [{**VAST_OFFER, "num_gpus": 1.5}]}).encode()
    monkeypatch.setattr(web, "fetch", lambda *_, **__: body)

    with pytest.raises(
        ProviderError, match=r"no row of the answer can be read: num_gpus=1.5 must be a whole number from"
    ):
        vast.find(QUERY, math.inf)


@pytest.mark.parametrize(
    ("label", "low", "high"), [("<5%", 0, 0.05), ("5-10%", 0.05, 0.1), (">20%", 0.2, None), ("> 20%", 0.2, None)]
)
def test_the_borders_of_a_range_are_those_of_its_label(label: str, low: float, high: float | None) -> None:
    """AWS may change its ranges."""
    rate = aws_advisor._range_of({"label": label})
    assert (rate.low, rate.high, rate.days) == (low, high, 30)


def test_the_rate_of_a_month_is_not_that_of_a_day() -> None:
    """10 % a month is one interruption in 285 days, and an open range counts with its lower end."""
    assert aws_advisor._range_of({"label": "5-10%"}).per_day == pytest.approx(-math.log(0.9) / 30)
    assert aws_advisor._range_of({"label": ">20%"}).per_day == pytest.approx(-math.log(0.8) / 30)


@pytest.mark.parametrize("label", ["5%", "5-%", "low", "<5", "5-10-15%"])
def test_a_label_of_another_form_is_not_guessed_at(label: str) -> None:
    with pytest.raises(fields.FieldError, match="must be a range of percents"):
        aws_advisor._range_of({"label": label})
