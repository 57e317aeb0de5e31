"""Offers as a part of the files of SkyPilot and dstack. The keys were read by both tools, see docs/prices.md."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
import yaml

from spot_plugins.market.base import Offer
from spot_plugins.market.candidates import MOST, TOOLS, CandidatesError

AT = datetime(2026, 11, 29, 12, 30, tzinfo=timezone.utc)


def offer(provider: str, region: str, spot: float | None, on_demand: float | None = None, **changes: Any) -> Offer:
    """Return an offer of 8 GPUs."""
    values = {"instance": "-", "gpu": "H100", "count": 8, "is_live": True, "source": "-", "answered_at": AT}
    return Offer(
        provider=provider, region=region, spot_per_hour=spot, on_demand_per_hour=on_demand, **{**values, **changes}
    )


OFFERS = [
    offer("aws", "us-east-1a", 12.0),
    offer("gcp", "us-central1", 13.0),
    offer("aws", "us-east-1b", 14.0),
    offer("aws", "us-east-1a", 15.0),
    offer("lambda", "us-south-2", None, 20.0),
]


def written(tool: str, offers: list[Offer]) -> tuple[Any, str, list[str]]:
    """Return the value that the lines for *tool* mean, the lines, and what was told."""
    told: list[str] = []
    text = "\n".join(TOOLS[tool](offers, AT, told.append))
    return yaml.safe_load(text), text, told


def test_skypilot_tries_the_places_in_their_order() -> None:
    """Each place once, with its cheapest offer; a zone of AWS within its region."""
    value, text, told = written("skypilot", OFFERS)

    assert value == {
        "resources": {
            "job_recovery": {"strategy": "FAILOVER", "recover_on_exit_codes": [143]},
            "ordered": [
                {"infra": "aws/us-east-1/us-east-1a", "accelerators": "H100:8", "use_spot": True},
                {"infra": "gcp/us-central1", "accelerators": "H100:8", "use_spot": True},
                {"infra": "aws/us-east-1/us-east-1b", "accelerators": "H100:8", "use_spot": True},
                {"infra": "lambda/us-south-2", "accelerators": "H100:8", "use_spot": False},
            ],
        }
    }
    assert text.splitlines()[0].startswith("# The cheapest 4 of the offers of 2026-11-29 12:30 UTC. ")
    assert "# $1.500 per GPU and hour" in text
    assert told == []


def test_dstack_gets_the_bounds_of_what_it_may_rent() -> None:
    """Regions without zones, the dearest price of a machine, and both kinds of machine."""
    value, _, told = written("dstack", OFFERS)

    assert value == {
        "backends": ["aws", "gcp", "lambda"],
        "regions": ["us-east-1", "us-central1", "us-south-2"],
        "spot_policy": "auto",
        "max_price": 20.0,
        "retry": {"on_events": ["no-capacity", "interruption", "error"], "duration": "1d"},
        "resources": {"gpu": "H100:8"},
    }
    assert told == []


def test_a_marketplace_has_no_regions() -> None:
    """So dstack gets no list of regions, which would exclude it, and SkyPilot its name alone."""
    offers = [offer("vast", "Sweden, SE", 10.0), offer("vast", "Norway, NO", 11.0), OFFERS[0]]

    sky, dstack = written("skypilot", offers)[0], written("dstack", offers)[0]

    assert [each["infra"] for each in sky["resources"]["ordered"]] == ["vast", "aws/us-east-1/us-east-1a"]
    assert dstack["backends"] == ["vastai", "aws"]
    assert "regions" not in dstack
    assert dstack["spot_policy"] == "spot"


def test_places_of_the_catalogue_are_regions_and_zones() -> None:
    """It names zones of Google Cloud, and regions of the clouds that are nowhere else."""
    offers = [
        offer("gcp", "us-central1-a", 10.0),
        offer("oci", "us-ashburn-1", 11.0),
        offer("nebius", "eu-north1", 12.0),
    ]

    sky, dstack = written("skypilot", offers)[0], written("dstack", offers)[0]

    assert [each["infra"] for each in sky["resources"]["ordered"]] == [
        "gcp/us-central1/us-central1-a",
        "oci/us-ashburn-1",
        "nebius/eu-north1",
    ]
    assert (dstack["backends"], dstack["regions"]) == (
        ["gcp", "oci", "nebius"],
        ["us-central1", "us-ashburn-1", "eu-north1"],
    )


@pytest.mark.parametrize(
    ("gpus", "sky", "dstack"),
    [
        (["A100-40GB"], ["A100:8"], "A100:40GB:8"),
        (["A100-80GB", "A100-40GB"], ["A100-80GB:8", "A100:8"], "A100:8"),
        (["V100-16GB"], ["V100:8"], "V100:16GB:8"),
    ],
)
def test_gpus_have_the_names_of_the_tool(gpus: list[str], sky: list[str], dstack: str) -> None:
    offers = [offer("gcp", "us-central1", 10.0, gpu=gpu) for gpu in gpus]

    assert [each["accelerators"] for each in written("skypilot", offers)[0]["resources"]["ordered"]] == sky
    assert written("dstack", offers)[0]["resources"]["gpu"] == dstack


@pytest.mark.parametrize("tool", TOOLS)
def test_what_cannot_be_rented_is_left_out(tool: str) -> None:
    """A provider that the tool does not know, with words; a machine that a live source has none of."""
    offers = [offer("contract", "rack 4", 1.0), offer("lambda", "no region", None, 2.0, stock="none"), OFFERS[1]]

    value, text, told = written(tool, offers)

    name = {"skypilot": "SkyPilot"}.get(tool, tool)
    assert told == [f"contract: its offers are left out, because they are not written for {name}"]
    assert "rack" not in text
    assert "lambda" not in text
    assert "us-central1" in str(value)
    with pytest.raises(CandidatesError, match=f"no offer is of a provider that {name} knows"):
        written(tool, offers[:2])


def test_the_cheapest_places_are_enough() -> None:
    offers = [offer("azure", f"region{number}", 1.0 + number) for number in range(MOST + 5)]

    value, _, _ = written("skypilot", offers)

    assert [each["infra"] for each in value["resources"]["ordered"]] == [f"azure/region{n}" for n in range(MOST)]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_place_from_a_file_stays_one_value(tool: str) -> None:
    """A name of a region is text, whatever it would mean in YAML."""
    value, _, _ = written(tool, [offer("gcp", 'no"}, run: {x: "#', 1.0)])

    assert 'no"}, run: {x: "#' in str(value)
    assert "run" not in value
