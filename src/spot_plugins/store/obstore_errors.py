"""Answers of services and network failures, parsed from the errors of obstore, which contain them only as text."""

from __future__ import annotations

import re
from html import unescape
from typing import Final

_DEBUG: Final = "\n\nDebug source:"  # Rust's debug output of the same error follows
_STATUS: Final = re.compile(r"Server returned (?:non-2xx status|error) code: (\d{3})([^:]*):?(.*)", re.DOTALL)
_TAG: Final = r"<{0}>(.*?)</{0}>"
_KIND: Final = re.compile(r"HttpError \{\s*kind: (\w+)")
_CAUSE: Final = re.compile(r'(?:message|error): "([^"]*)"')
_UNTRUSTED: Final = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)")
_URL: Final = re.compile(r"https?://[^\s?]*")
_PAST_END: Final = "Wanted range starting at"
_REDIRECT: Final = "Received redirect without LOCATION"


def obstore_answer(error: BaseException) -> tuple[str, str, int] | None:
    """Return code, message and HTTP status of the service's answer in *error*. None if there was no answer."""
    if not _is_obstore(error):
        return None
    text = str(error).partition(_DEBUG)[0]
    if _REDIRECT in text:
        return "PermanentRedirect", "the bucket is in another region; give its region_name in client_kwargs", 301
    if _PAST_END in text:  # after an answer that names only the size of the object
        return "InvalidRange", text, 416
    if (match := _STATUS.search(text)) is None:
        return None
    status, phrase, body = match.groups()
    return _tag("Code", body), _tag("Message", body) or phrase.strip(), int(status)


def obstore_text(error: BaseException) -> str | None:
    """Return the network failure that *error* reports. None if obstore did not raise *error*."""
    if not _is_obstore(error):
        return None
    text, _, debug = str(error).partition(_DEBUG)
    kind = _KIND.search(debug)
    if kind is None:
        return text
    cause = _CAUSE.search(debug)
    url = _URL.search(text)
    at = f" at {url[0]}" if url else ""
    if kind[1] == "Timeout":
        return f"timeout: no answer{at}"
    if untrusted := _UNTRUSTED.search(debug):
        remedy = "give a file with its certificate authority as verify in client_kwargs, or as AWS_CA_BUNDLE"
        return f"the certificate{at} is not trusted ({untrusted[1]}); {remedy}"
    failure = (
        "cannot connect to the endpoint URL" if kind[1] == "Connect" else "the connection to the endpoint URL broke"
    )
    return f"{failure}: {cause[1] if cause else kind[1]}{at}"


def _is_obstore(error: BaseException) -> bool:
    return _DEBUG in str(error) or type(error).__module__.partition(".")[0] == "obstore"


def _tag(name: str, body: str) -> str:
    match = re.search(_TAG.format(name), body, re.DOTALL)
    return unescape(match[1]).strip() if match else ""
