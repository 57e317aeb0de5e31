"""Error answers of services, read from the errors of every client library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from .obstore_errors import obstore_answer

_NO_BUCKET_CODES: Final = frozenset({"NoSuchBucket", "ContainerNotFound"})
_EXISTS_CODES: Final = frozenset({"BlobAlreadyExists"})
_AZURE_DETAIL: Final = re.compile(r"AuthenticationErrorDetail[:>]([^\n<]*)")


class NoCredentialsError(Exception):
    """No credentials were found."""


class ServiceError(Exception):
    """An error answer, raised by a client that would lose parts of it."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(code, message, status)
        self.answer = Answer(code, message, status)


class Answer(NamedTuple):
    """An error answer of a service."""

    code: str
    """Code of the error, for example ``NoSuchBucket``. Empty if the answer has none."""
    message: str
    status: int


def find_answer(error: BaseException) -> Answer | None:
    """Return the service's answer that *error* or one of its causes reports. None if the service did not answer."""
    for link in chain(error):
        if isinstance(link, ServiceError):
            return link.answer
        if (found := obstore_answer(link)) is not None:
            return Answer(*found)
        if (answer := _botocore_answer(link) or _azure_answer(link)) is not None:
            return answer
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and the errors that caused it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def is_missing(error: BaseException) -> bool:
    """Return whether *error*, of a request for one object, says that the object is missing, and not the bucket."""
    answer = find_answer(error)
    if answer is None:
        return isinstance(error, FileNotFoundError)
    return answer.status == 404 and answer.code not in _NO_BUCKET_CODES


def is_existing(error: BaseException) -> bool:
    """
    Return whether *error*, of a put of a new object, says that the object exists.

    If two puts come at once, S3 may answer 409 to one before it has decided which of them wins. This is another error.
    """
    answer = find_answer(error)
    if answer is None:
        return isinstance(error, FileExistsError)
    return answer.status == 412 or answer.code in _EXISTS_CODES


def is_past_end(error: BaseException) -> bool:
    """Return whether *error* says that the object ends before the range begins."""
    answer = find_answer(error)
    return answer is not None and answer.status == 416


def _botocore_answer(error: BaseException) -> Answer | None:
    """Return the answer in a ``ClientError`` of botocore."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict) or "Error" not in response:
        return None
    fields = response["Error"]
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(fields.get("Code", ""))
    # The answer to HEAD has no body, and botocore then takes the status for the code.
    return Answer("" if code.isdigit() else code, str(fields.get("Message", "")), int(status))


def _azure_answer(error: BaseException) -> Answer | None:
    """Return the answer in an ``HttpResponseError`` of azure-core."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or status < 300 or not type(error).__module__.startswith("azure."):
        return None  # another error, or an answer that cannot be read
    text = str(error)
    code = getattr(error, "error_code", None) or ""
    detail = _AZURE_DETAIL.search(text)
    message = text.partition("\n")[0] + (f" {detail[1].strip()}" if detail else "")
    return Answer(str(getattr(code, "value", code)), message, status)
