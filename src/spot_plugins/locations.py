"""URLs of runs and paths in settings: what they name, and mistakes that would make a folder of a strange name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

EXAMPLES: Final = "s3://bucket/run, gs://bucket/run, abfs://container/run, file:///data/run or a plain path"

_LOCAL_SCHEMES: Final = ("file", "local", "")
_UNEXPANDED: Final = re.compile(r"\$\w+|\$\{[^}]*\}|\$\([^)]*\)|\{[^{}/]*\}")
_WORD_AND_COLON: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SECRET_IN_URL: Final = re.compile(r"(?<=://)[^/]*(?=@)|(?<=\?).*")


def printable_url(url: str) -> str:
    """Return *url* without its user, password and query: a signed URL carries its signature there."""
    return _SECRET_IN_URL.sub("***", url)


def scheme_of(url: str) -> str:
    """Return the part of *url* before ``://``, or nothing for a plain path."""
    return url.partition("://")[0] if "://" in url else ""


def is_local(url: str) -> bool:
    """Return whether *url* is a directory of this machine: a plain path, ``file://`` or ``local://``."""
    return scheme_of(url) in _LOCAL_SCHEMES


def cache_folder() -> Path:
    """
    Return this user's folder for what can be made again, as the XDG base directory specification says.

    Raises:
        RuntimeError: There is no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "spot_plugins"


def absolute_url(url: str) -> str:
    """
    Return *url*, with a plain path made absolute.

    Raises:
        ValueError: A variable was not expanded, or *url* looks like a URL and lacks a slash. The reason follows
            ``url=...`` in a sentence.
    """
    if not scheme_of(url):
        if (word := _WORD_AND_COLON.match(url)) is not None:
            raise ValueError(
                f"is not a path, and as a URL it lacks a slash after {word.group()!r}: give one such as {EXAMPLES}. If "
                f"it is a path, begin it with ./"
            )
        return absolute_path(url)
    _refuse_unexpanded(url)
    if is_local(url) and not url.partition("://")[2].startswith("/"):
        raise ValueError("names a host, not a directory: write three slashes, as in file:///data/run")
    return url


def absolute_path(path: str) -> str:
    """
    Return *path* made absolute, with ``~`` replaced by the home directory.

    Raises:
        ValueError: A variable was not expanded, or there is no such home directory.
    """
    _refuse_unexpanded(path)
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("begins with the name of a user who is unknown here: give the whole path")
    return os.path.abspath(expanded)


def absolute_path_or_page(location: str) -> str:
    """Return *location* as :func:`absolute_path` does, unless it is a page: ``http://`` or ``https://``."""
    return location if location.startswith(("http://", "https://")) else absolute_path(location)


def _refuse_unexpanded(location: str) -> None:
    if location != location.strip():
        raise ValueError("begins or ends with white space: remove it")
    if (found := _UNEXPANDED.search(location.partition("?")[0])) is not None:
        raise ValueError(
            f"holds {found.group()}, which was not expanded: let the shell or an f-string expand it, or use "
            f"os.path.expandvars"
        )
