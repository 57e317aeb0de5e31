"""The two calls of EC2 that are needed, signed by botocore and sent with this package's limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode
from xml.etree import ElementTree

from ..clock import SystemClock
from . import fields, web
from .base import ProviderError

_VERSION: Final = "2016-11-15"
_DEFAULT_REGION: Final = "us-east-1"
_MAX_PAGES: Final = 5
_MAX_SCORED_REGIONS: Final = 10  # the call takes no more
_CODE: Final = re.compile(rb"<Code>([\w.]{1,60})</Code>")


@dataclass(frozen=True, slots=True, repr=False)
class Account:
    """Credentials, which are never printed, and the region that the user works in."""

    credentials: Any
    region: str


@dataclass(frozen=True, slots=True)
class SpotPrice:
    """The present price of an instance type in a zone."""

    region: str
    zone: str
    zone_id: str
    instance_type: str
    per_hour: float


def open_account() -> Account:
    """
    Return the account that botocore finds: in the environment, the files of the AWS tools or the machine's role.

    Raises:
        ProviderError: botocore is missing, or finds no credentials.
    """
    try:
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
        from botocore.session import Session  # type: ignore[import-untyped]
    except ImportError:
        raise ProviderError("its requests need botocore: pip install botocore") from None
    try:
        session = Session()
        found = session.get_credentials()
        region = session.get_config_variable("region") or _DEFAULT_REGION
        credentials = found and found.get_frozen_credentials()
    except BotoCoreError as error:
        raise ProviderError(f"no credentials, so its offers are left out: {error}") from None
    if not credentials:
        raise ProviderError(
            "no credentials, so its offers are left out: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    return Account(credentials, region)


def url_of(region: str) -> str:
    """Return the address of EC2 in *region*."""
    return f"https://ec2.{region}.amazonaws.com/"


def spot_prices(account: Account, region: str, types: list[str], until: float) -> list[SpotPrice]:
    """Return the present prices of *types* in the zones of *region*. Raises :exc:`ProviderError`."""
    wanted = {
        "Action": "DescribeSpotPriceHistory",
        "StartTime": f"{SystemClock().utc():%Y-%m-%dT%H:%M:%SZ}",
        "ProductDescription.1": "Linux/UNIX",
        **_listed("InstanceType", types),
    }
    newest: dict[tuple[str, str], tuple[Any, SpotPrice]] = {}
    for row in _rows(account, region, wanted, "spotPriceHistorySet", until):
        try:
            kind, zone, at = (
                fields.text(row, "instanceType"),
                fields.text(row, "availabilityZone"),
                row.get("timestamp"),
            )
            if kind not in types:
                continue
            zone_id = fields.optional(fields.text, row, "availabilityZoneId") or ""
            price = SpotPrice(region, zone, zone_id, kind, fields.price(row, "spotPrice"))
        except fields.FieldError as error:
            raise ProviderError(f"the answer is not as documented: {error}") from None
        if (zone, kind) not in newest or (at or "") > newest[zone, kind][0]:
            newest[zone, kind] = (at or "", price)
    return [price for _, price in newest.values()]


def placement_scores(account: Account, kind: str, regions: list[str], until: float) -> dict[str, int]:
    """Return by zone how likely one spot machine is to be had there now, from 1 to 10. Raises :exc:`ProviderError`."""
    wanted = {
        "Action": "GetSpotPlacementScores",
        "TargetCapacity": "1",
        "SingleAvailabilityZone": "true",
        **_listed("InstanceType", [kind]),
        **_listed("RegionName", regions[:_MAX_SCORED_REGIONS]),
    }
    try:
        rows = list(_rows(account, account.region, wanted, "spotPlacementScoreSet", until))
        return {fields.text(row, "availabilityZoneId"): fields.whole(row, "score") for row in rows}
    except fields.FieldError as error:
        raise ProviderError(f"the answer is not as documented: {error}") from None


def _listed(name: str, values: list[str]) -> dict[str, str]:
    return {f"{name}.{number}": value for number, value in enumerate(values, 1)}


def _rows(
    account: Account, region: str, wanted: Mapping[str, str], name: str, until: float
) -> Iterator[dict[str, str]]:
    """Yield the entries of the list *name* of all pages, each as its fields."""
    token = ""
    for _ in range(_MAX_PAGES):
        page = _page(account, region, {**wanted, **({"NextToken": token} if token else {})}, until)
        for item in page.findall(f"{{*}}{name}/{{*}}item"):
            yield {child.tag.rpartition("}")[2]: child.text or "" for child in item}
        token = page.findtext("{*}nextToken") or ""
        if not token:
            return
    raise ProviderError(f"the answer has more than {_MAX_PAGES} pages")


def _page(account: Account, region: str, wanted: Mapping[str, str], until: float) -> ElementTree.Element:
    from botocore.auth import SigV4Auth  # type: ignore[import-untyped]
    from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]

    url = url_of(region)
    body = urlencode({"Version": _VERSION, **wanted}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    request = AWSRequest(method="POST", url=url, data=body, headers=headers)
    SigV4Auth(account.credentials, "ec2", region).add_auth(request)
    try:
        answer = web.fetch(url, until, headers=dict(request.headers.items()), body=body)
    except web.StatusError as error:
        # The code alone, because the message repeats the account.
        code = _CODE.search(error.body)
        raise ProviderError(code[1].decode() if code else str(error)) from None
    try:
        return ElementTree.fromstring(answer)
    except ElementTree.ParseError:
        raise ProviderError(f"the answer of {len(answer)} bytes is not XML") from None
