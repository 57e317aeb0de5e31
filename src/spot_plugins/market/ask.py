"""All providers, asked side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from . import aws, azure, cache, catalogue, gcp, lambda_cloud, runpod, vast
from .base import Answer, Provider, ProviderError, Query
from .threads import in_parallel

PROVIDERS: Final = (
    vast.PROVIDER,
    runpod.PROVIDER,
    lambda_cloud.PROVIDER,
    aws.PROVIDER,
    azure.PROVIDER,
    gcp.PROVIDER,
    catalogue.PROVIDER,
)


def ask(query: Query, providers: Iterable[Provider] = PROVIDERS, *, fresh: bool = False) -> dict[str, Answer | str]:
    """
    Ask *providers* for what *query* looks for.

    Args:
        query: The GPUs.
        providers: The providers. Each has its own limit, and one that fails does not delay the others.
        fresh: Whether to ask even if the cache has a recent answer.

    Returns:
        By provider, its answer or the reason why there is none.
    """
    results: dict[str, Answer | str] = {}
    asked = {}
    for each in providers:
        kept = None if fresh else cache.load(each.name, query)
        if kept is None:
            asked[each.name] = (each.limit_s, lambda until, each=each: each.find(query, until))
        else:
            results[each.name] = kept
    for name, result in in_parallel(asked).items():
        if isinstance(result, ProviderError):
            results[name] = str(result)
            continue
        results[name] = result
        try:
            cache.store(name, query, result)
        except (OSError, RuntimeError) as error:
            result.notes.append(f"the answer cannot be kept in {cache.folder()}: {error}")
    return results
