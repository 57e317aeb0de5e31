"""
The services of six providers and a catalogue, on a real socket: what they answer has the form that they document.

:class:`MarketServer` is a proxy. A client that is sent through it (``HTTPS_PROXY``) and trusts its certificate
(``SSL_CERT_FILE``) speaks TLS with the names of the real services, and no request leaves the machine. Prices are made
up. Each form names its source.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import ssl
import threading
import zipfile
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VAST, RUNPOD, LAMBDA = "console.vast.ai", "api.runpod.io", "cloud.lambda.ai"
AZURE, GOOGLE = "prices.azure.com", "cloudbilling.googleapis.com"
ADVISOR = "spot-bid-advisor.s3.amazonaws.com"
REGIONS = ("us-east-1", "eu-north-1", "ap-east-1")
EC2 = tuple(f"ec2.{region}.amazonaws.com" for region in REGIONS)
CATALOGUE = "dstack-gpu-pricing.s3.eu-west-1.amazonaws.com"
ELSEWHERE = "elsewhere.example"

HOSTS = {
    "vast": (VAST,),
    "runpod": (RUNPOD,),
    "lambda": (LAMBDA,),
    "aws": (ADVISOR, *EC2),
    "azure": (AZURE,),
    "gcp": (GOOGLE,),
    "catalogue": (CATALOGUE,),
}
"""The hosts of each provider."""

AWS_KEY, AWS_SECRET = "AKIAEXAMPLEKEY", "aws-secret-7f3a"
KEYS = {
    "VAST_API_KEY": "vast-secret-7f3a",
    "RUNPOD_API_KEY": "runpod-secret-7f3a",
    "LAMBDA_API_KEY": "lambda-secret-7f3a",
    "GOOGLE_API_KEY": "google-secret-7f3a",
    "AWS_ACCESS_KEY_ID": AWS_KEY,
    "AWS_SECRET_ACCESS_KEY": AWS_SECRET,
}
SECRET = "secret-7f3a"
"""Part of every key."""

# vastai 1.9.1, vastai/data/offer.py: all but the first seven may be missing. gpu_ram is in MB.
VAST_OFFER = {
    **{"id": 9110, "machine_id": 12, "host_id": 3, "num_gpus": 8, "gpu_name": "H100 SXM", "gpu_ram": 81559},
    **{"dph_base": 16.0, "dph_total": 16.01, "min_bid": 12.0, "storage_cost": 0.15, "is_bid": True},
    **{"rentable": True, "rented": False, "geolocation": "Sweden, SE", "reliability2": 0.99, "cpu_cores": None},
}
# docs.runpod.io, api-reference-v2/catalog/list-gpu-types.
RUNPOD_GPU = {
    **{"id": "NVIDIA H100 80GB HBM3", "name": "H100 SXM", "pool": "HOPPER_80", "manufacturer": "Nvidia", "memory": 80},
    **{"secure": True, "community": False, "price": {"secure": 2.99, "community": None, "serverless": 4.47}},
    **{"maxCount": {"secure": 8, "community": 8}, "availability": "HIGH"},
    "dataCenters": [{"id": "US-KS-2", "name": "US-KS-2", "availability": "HIGH"}],
}
# Lambda's OpenAPI 1.10.0.
LAMBDA_TYPE = {
    "instance_type": {
        **{"name": "gpu_8x_h100_sxm5", "description": "8x H100 (80 GB SXM5)", "gpu_description": "H100 (80 GB SXM5)"},
        **{"price_cents_per_hour": 2392, "specs": {"vcpus": 208, "memory_gib": 1800, "storage_gib": 22528, "gpus": 8}},
    },
    "regions_with_capacity_available": [{"name": "us-west-1", "description": "California, USA"}],
}
# learn.microsoft.com, Azure Retail Prices REST API.
AZURE_ITEM = {
    **{"currencyCode": "USD", "tierMinimumUnits": 0.0, "unitPrice": 98.32, "retailPrice": 98.32, "type": "Consumption"},
    **{"armRegionName": "eastus", "location": "US East", "effectiveStartDate": "2024-03-01T00:00:00Z"},
    **{"meterId": "a", "meterName": "ND96isr H100 v5", "productId": "p", "skuId": "p/1", "skuName": "ND96isr H100 v5"},
    **{"productName": "Virtual Machines NDsr H100 v5 Series", "serviceName": "Virtual Machines", "serviceId": "s"},
    **{"serviceFamily": "Compute", "unitOfMeasure": "1 Hour", "isPrimaryMeterRegion": True},
    "armSkuName": "Standard_ND96isr_H100_v5",
}
# github.com/nint8835/interruption-spotter, pkg/spotdata/types.go. The share is that of the trailing month.
ADVICE = {
    "global_rate": "<5%",
    "instance_types": {"p5.48xlarge": {"cores": 192, "ram_gb": 2048.0, "emr": True}},
    "ranges": [
        {"index": 0, "label": "<5%", "dots": 0, "max": 5},
        {"index": 1, "label": "5-10%", "dots": 1, "max": 11},
        {"index": 2, "label": "10-15%", "dots": 2, "max": 16},
        {"index": 3, "label": "15-20%", "dots": 3, "max": 22},
        {"index": 4, "label": ">20%", "dots": 4, "max": 100},
    ],
    "spot_advisor": {
        "us-east-1": {"Linux": {"p5.48xlarge": {"s": 57, "r": 1}, "m5.large": {"s": 59, "r": 0}}, "Windows": {}},
        "eu-north-1": {"Linux": {"p5.48xlarge": {"s": 68, "r": 4}}},
        "ap-east-1": {"Linux": {"p5.48xlarge": {"s": 50, "r": 0}}},
        "us-west-2": {"Windows": {"p5.48xlarge": {"s": 1, "r": 4}}},
    },
}


def sku(description, usage, nanos, regions=("us-central1",), unit="h", units="0"):
    """An entry of Google's catalog: cloud.google.com/billing/v1/how-tos/catalog-api."""
    rate = {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": units, "nanos": nanos}}
    expression = {"usageUnit": unit, "displayQuantity": 1, "tieredRates": [rate]}
    return {
        **{"name": "services/6F81-5844-456A/skus/0000", "skuId": "0000-0000-0000", "description": description},
        "category": {"serviceDisplayName": "Compute Engine", "resourceFamily": "Compute", "usageType": usage},
        **{"serviceRegions": list(regions), "serviceProviderName": "Google"},
        "pricingInfo": [{"summary": "", "pricingExpression": expression, "currencyConversionRate": 1}],
    }


# Descriptions as in gpuhunt's and SkyPilot's readers of the catalog. The first is filed as OnDemand, as Google's own
# entries sometimes are. The machine in europe-west4 has no price for its memory.
SKUS = [
    sku(
        "Nvidia H100 80GB GPU attached to Spot Preemptible VMs running in Americas", "OnDemand", 500_000_000, units="2"
    ),
    sku("Spot Preemptible A3 Instance Core running in Americas", "Preemptible", 10_000_000),
    sku("Spot Preemptible A3 Instance Ram running in Americas", "Preemptible", 1_000_000, unit="GiBy.h"),
    sku("SSD backed Local Storage attached to Spot Preemptible VMs", "Preemptible", 73_000_000, unit="GiBy.mo"),
    sku("Nvidia H100 80GB GPU running in Americas", "OnDemand", 0, ("us-central1", "europe-west4"), units="9"),
    sku("A3 Instance Core running in Americas", "OnDemand", 20_000_000, ("us-central1", "europe-west4")),
    sku("A3 Instance Ram running in Americas", "OnDemand", 2_000_000, unit="GiBy.h"),
    sku("SSD backed Local Storage", "OnDemand", 146_000_000, ("us-central1", "europe-west4"), unit="GiBy.mo"),
    sku("Commitment v1: Nvidia H100 80GB GPU running in Americas for 1 Year", "Commit1Yr", 1),
    sku("N1 Predefined Instance Core running in Americas", "OnDemand", 1),
]


class MarketServer:
    """All services. ``faults[host]`` makes one of them fail, and ``answers[host]`` replaces what it answers."""

    def __init__(self, folder):
        self.faults = {}
        self.answers = {}
        self.requests = []
        self.closed = threading.Event()
        self.certificate = str(folder / "market.pem")
        key = str(folder / "market.key")
        _make_certificate(self.certificate, key)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, key)

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environ(self):
        """Return the variables that lead a client here, with all keys."""
        return {"HTTPS_PROXY": self.url, "SSL_CERT_FILE": self.certificate, "AWS_DEFAULT_REGION": "us-east-1", **KEYS}

    def asked(self, host):
        """Return the requests that reached *host*."""
        return [request for request in self.requests if request.host == host]


class Request(NamedTuple):
    """A request that has arrived."""

    host: str
    path: str
    headers: Message
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: MarketServer
    host = ""

    def do_CONNECT(self):
        self.host = self.path.partition(":")[0]
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.connection = self.site.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.host, self.path, self.headers, body)
        self.site.requests.append(request)
        self.close_connection = True
        fault = self.site.faults.get(self.host)
        if fault is None:
            self.reply(*(self.site.answers.get(self.host) or ANSWERS.get(self.host, answer_hook))(request))
        else:
            FAULTS[fault](self)

    do_POST = do_GET  # noqa: N815

    def reply(self, status, document, **headers):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, first):
        """Send *first*, and then a byte every 50 ms for ever."""
        self.wfile.write(first)
        while not self.site.closed.wait(0.05):
            self.wfile.write(b" ")

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(OSError):  # the client is gone
            super().handle()

    def finish(self):
        with suppress(OSError):
            super().finish()
        self.connection.close()


def _cut(handler):
    handler.send_response_only(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"offers": []}')


def _huge(handler):
    handler.send_response_only(200)
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" " * 1024**2)


FAULTS = {
    "503": lambda handler: handler.reply(503, b"<html>an error</html>"),
    "429": lambda handler: handler.reply(429, b"slow down", Retry_After="30"),
    "hang": lambda handler: handler.site.closed.wait(),
    "drip of the head": lambda handler: handler.drip(b"HTTP/1.1 200 OK\r\nX-Long: "),
    "drip of the body": lambda handler: handler.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{"),
    "cut off": _cut,
    "half of a document": lambda handler: handler.reply(200, b'{"offers": [{"id": 1, "num_gpus":'),
    "other types": lambda handler: handler.reply(200, [1, "two", None]),
    "huge": _huge,
    "redirect": lambda handler: handler.reply(302, b"", Location=f"https://{ELSEWHERE}/"),
    "no HTTP": lambda handler: handler.wfile.write(b"\x00\x01\x02\r\n\r\n"),
}


def answer_vast(request):
    wanted = json.loads(request.body)
    if wanted["type"] != "bid" or wanted["rentable"] != {"eq": True}:
        return 400, {"success": False, "error": "invalid_args"}
    offers = [VAST_OFFER, {**VAST_OFFER, "id": 9111, "num_gpus": 1, "min_bid": 1.6, "dph_base": 2.1}]
    number = wanted.get("num_gpus", {}).get("eq")
    names = wanted["gpu_name"]["in"]
    return 200, {
        "offers": [each for each in offers if each["gpu_name"] in names and number in (None, each["num_gpus"])]
    }


def answer_runpod(request):
    query = parse_qs(urlsplit(request.path).query)
    if request.headers["Authorization"] != f"Bearer {KEYS['RUNPOD_API_KEY']}":
        return 401, {"error": "unauthorized"}
    if "product" not in query or query["cloud"][0] not in ("SECURE", "COMMUNITY"):
        return 400, {"error": "include needs product"}
    return 200, {"gpus": [RUNPOD_GPU, {**RUNPOD_GPU, "id": "NVIDIA L40S", "name": "L40S", "memory": 48}]}


def answer_lambda(request):
    if request.headers["Authorization"] != f"Bearer {KEYS['LAMBDA_API_KEY']}":
        return 401, {"error": {"code": "global/invalid-api-key", "message": "invalid", "suggestion": "check it"}}
    processor = {**LAMBDA_TYPE["instance_type"], "name": "cpu_4x_general", "gpu_description": "N/A"}
    processor["specs"] = {**processor["specs"], "gpus": 0}
    cpu = {"instance_type": processor, "regions_with_capacity_available": []}
    return 200, {"data": {"gpu_8x_h100_sxm5": LAMBDA_TYPE, "cpu_4x_general": cpu}}


def answer_azure(request):
    query = parse_qs(urlsplit(request.path).query)
    if "$skip" in query:
        spot = {
            **AZURE_ITEM,
            "retailPrice": 19.66,
            "meterName": "ND96isr H100 v5 Spot",
            "skuName": "ND96isrH100v5 Spot",
        }
        windows = {**spot, "productName": "Virtual Machines NDsr H100 v5 Series Windows", "retailPrice": 1.0}
        low = {**spot, "skuName": "ND96isr H100 v5 Low Priority", "meterName": "Low Priority", "retailPrice": 1.0}
        return 200, {"BillingCurrency": "USD", "Items": [spot, windows, low], "NextPageLink": None, "Count": 3}
    if "armSkuName eq 'Standard_ND96isr_H100_v5'" not in query["$filter"][0]:
        return 200, {"BillingCurrency": "USD", "Items": [], "NextPageLink": None, "Count": 0}
    link = f"https://{AZURE}:443/api/retail/prices?$skip=1"
    return 200, {"BillingCurrency": "USD", "Items": [AZURE_ITEM], "NextPageLink": link, "Count": 1}


def answer_google(request):
    if request.headers["X-Goog-Api-Key"] != KEYS["GOOGLE_API_KEY"]:
        return 403, {"error": {"code": 403, "status": "PERMISSION_DENIED"}}
    token = parse_qs(urlsplit(request.path).query).get("pageToken", [""])[0]
    return 200, {"skus": SKUS[5:] if token else SKUS[:5], "nextPageToken": "" if token else "second"}


def answer_ec2(request):
    """Answer as botocore's model of EC2 2016-11-15 says. One region is not enabled."""
    region = request.host.split(".")[1]
    wanted = dict(parse_qsl(request.body.decode()))
    if region == "ap-east-1" or not is_signed(request, region):
        return 401, _ec2_error("AuthFailure", "AWS was not able to validate the provided access credentials")
    if wanted["Action"] == "GetSpotPlacementScores":
        return 200, _xml("GetSpotPlacementScoresResponse", "spotPlacementScoreSet", SCORES)
    assert wanted["InstanceType.1"] == "p5.48xlarge"
    assert wanted["ProductDescription.1"] == "Linux/UNIX"
    return 200, _xml("DescribeSpotPriceHistoryResponse", "spotPriceHistorySet", PRICES[region])


def _price(zone, zone_id, price, at="2026-11-29T12:00:00.000Z"):
    named = {"instanceType": "p5.48xlarge", "productDescription": "Linux/UNIX", "spotPrice": price, "timestamp": at}
    return {**named, "availabilityZone": zone, "availabilityZoneId": zone_id}


PRICES = {
    "us-east-1": [
        _price("us-east-1a", "use1-az1", "23.600000"),
        _price("us-east-1a", "use1-az1", "99.000000", "2026-11-28T12:00:00.000Z"),
        _price("us-east-1b", "use1-az2", "25.000000"),
    ],
    "eu-north-1": [_price("eu-north-1a", "eun1-az1", "14.400000")],
}
SCORES = [
    {"region": "us-east-1", "availabilityZoneId": "use1-az1", "score": "3"},
    {"region": "eu-north-1", "availabilityZoneId": "eun1-az1", "score": "1"},
]


def _xml(root, name, rows, token=""):
    body = "".join("<item>" + "".join(f"<{k}>{v}</{k}>" for k, v in row.items()) + "</item>" for row in rows)
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
    tail = f"<requestId>0</requestId><{name}>{body}</{name}><nextToken>{token}</nextToken></{root}>"
    return (head + tail).encode()


def _ec2_error(code, message):
    told = f"<Code>{code}</Code><Message>{message} {AWS_KEY}</Message>"
    return f"<Response><Errors><Error>{told}</Error></Errors><RequestID>0</RequestID></Response>".encode()


def is_signed(request, region):
    """Return whether the signature is that of what arrived: docs.aws.amazon.com, Signature Version 4."""
    kind, _, rest = request.headers.get("Authorization", "").partition(" ")
    parts = dict(part.strip().split("=", 1) for part in rest.split(","))
    names = parts["SignedHeaders"].split(";")
    stamp = request.headers["X-Amz-Date"]
    scope = f"{stamp[:8]}/{region}/ec2/aws4_request"
    headers = "".join(f"{name}:{request.headers[name].strip()}\n" for name in names)
    digest = hashlib.sha256(request.body).hexdigest()
    canonical = f"POST\n/\n\n{headers}\n{';'.join(names)}\n{digest}"
    to_sign = f"{kind}\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{AWS_SECRET}".encode()
    for word in (*scope.split("/"), to_sign):
        key = hmac.digest(key, word.encode(), "sha256")
    return parts["Credential"] == f"{AWS_KEY}/{scope}" and parts["Signature"] == key.hex()


CATALOGUE_HEAD = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,gpu_vendor,flags"
CATALOGUE_ROWS = {
    "aws": ["p5.48xlarge,us-east-1,98.32,192,2048,8,H100,80,False,,nvidia,"],
    "gcp": [
        "a3-highgpu-8g,us-east4,9.0,208,1872,8,H100,80,False,,nvidia,gcp-dws-calendar-mode",
        "a3-edgegpu-8g,us-east4,9.0,208,1872,8,H100,80,False,,nvidia,",
    ],
    "oci": [
        "BM.GPU.H100.8,us-ashburn-1,80.0,224,2048.0,8,H100,80.0,False,,nvidia,",
        "BM.GPU.H100.8,us-ashburn-1,40.0,224,2048.0,8,H100,80.0,True,,nvidia,oci-spot",
        "BM.GPU.H100.8,us-ashburn-1,90.0,224,2048.0,8,H100,80.0,False,,nvidia,",  # the cheaper of two rows counts
        "VM.Standard.E4,us-ashburn-1,0.1,2,32.0,0,,,False,,,",
        "VM.GPU.A10.1,us-ashburn-1,2.0,30,240.0,1,A10,24.0,False,,nvidia,",
    ],
}
"""By cloud, lines of its list in the catalogue of gpuhunt 0.1.34. Other clouds have a list without machines."""


def catalogue_zip(name, lines, head=CATALOGUE_HEAD):
    """Return the archive of a list of a cloud."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.csv", "\n".join([head, *lines]) + "\n")
    return packed.getvalue()


def answer_catalogue(request):
    _, version, name, *rest = request.path.split("/")
    assert version == "v3"
    if rest == ["version"]:
        return 200, b"20261128-42\n"
    assert rest == ["20261128-42", "catalog.zip"]
    return 200, catalogue_zip(name, CATALOGUE_ROWS.get(name, []))


def answer_hook(request):
    """Answer as a webhook does: nothing, and thanks."""
    return 204, b""


ANSWERS = {
    VAST: answer_vast,
    RUNPOD: answer_runpod,
    LAMBDA: answer_lambda,
    AZURE: answer_azure,
    GOOGLE: answer_google,
    CATALOGUE: answer_catalogue,
    ADVISOR: lambda request: (200, ADVICE),
    **dict.fromkeys(EC2, answer_ec2),
}


def _make_certificate(path, key_path):
    """Write a certificate for all the hosts, which is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "market of the tests")])
    now = datetime.now(timezone.utc)
    hosts = [*(host for hosts in HOSTS.values() for host in hosts), ELSEWHERE]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    with open(path, "wb") as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    with open(key_path, "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
