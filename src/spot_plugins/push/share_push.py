"""Push of the share of another rank, which has ended before its manifest was stored. Runs in the pusher process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from .. import events
from ..errors import GONE, SpotError
from ..format.attempts import check_newest
from ..format.commit import read_prepared
from ..format.keys import frozen_key
from ..format.manifest import ManifestError, RankManifest, is_intact
from ..store import get_at_most
from .frozen_watch import damage_of
from .messages import SealedBlob
from .step_push import NUM_PUTS, NUM_SEALS, StepPush

_OTHER_CONTENT: Final = "{} has other content on this rank: the ranks do not hold the same state"


class SharePush(StepPush):
    """
    Puts the shared blobs of a rank under its names, and then its manifest, if both are what that rank has prepared.

    The settings are those of that rank, without a local disk. The rank may be alive, or its pusher process may be. Then
    both put the same bytes under the same names, in any order.
    """

    def run(self) -> None:
        """Push. Never raises, because every failure is an event."""
        started = time.monotonic()
        step, rank = self._job.step, self._settings.rank
        try:
            num_bytes = self._push()
            self.is_committed = True
            push_s = time.monotonic() - started
            self._bus.emit(events.ShareFinished(step=step, rank=rank, num_bytes=num_bytes, push_s=push_s))
        except (SpotError, _DiffersError, ManifestError) as error:
            self._bus.emit(events.ShareNotFinished(step=step, rank=rank, reason=str(error)))
        except Exception as error:  # noqa: BLE001 - a bug must not end the pusher
            self._bus.emit(events.ShareNotFinished(step=step, rank=rank, reason=f"unexpected {error!r}"))

    def _push(self) -> int:
        """Compare everything with the prepared manifest before anything is put. Return the bytes put."""
        store, settings = self._ways.store, self._settings
        self._retry(partial(check_newest, store, settings.attempt))
        if self._retry(self._is_stored):
            return 0
        try:
            prepared = self._retry(
                partial(read_prepared, store, self._seals.step_id, settings.rank, settings.world_size)
            )
        except KeyError:
            raise _DiffersError("its prepared manifest is not stored, so its own state is unknown") from None
        with ThreadPoolExecutor(NUM_SEALS, "spot-seal", self._ways.lower_priority) as pool:
            self._seals.begin(pool)
            self._compare(prepared)
        unstored = dict(enumerate(self._seals.images))
        with ThreadPoolExecutor(NUM_PUTS, "spot-put", self._ways.lower_priority) as pool:
            self._retry(lambda: self._put_blobs(pool, unstored))
        self._commit(prepared)
        return sum(map(len, self._seals.images))

    def _compare(self, prepared: RankManifest) -> None:
        """
        Compare the blobs of this job with those that *prepared* names, and read the blobs that the rank has stored.

        Raises:
            _DiffersError: A blob has another name, size, slice or hash, or is missing in the store.
        """
        num_staged = len(self._seals.images)
        named = [SealedBlob(*each) for each in zip(prepared.blobs, map(tuple, prepared.slices_by_blob()), strict=True)]
        if num_staged > len(named):
            raise _DiffersError(_OTHER_CONTENT.format(self._seals[len(named)].blob.key))
        for index, each in enumerate(named):
            key = each.blob.key
            if index >= num_staged and key == frozen_key(each.blob.xxh3_128):
                if (damage := self._retry(partial(damage_of, self._ways.store, each))) is not None:
                    raise _DiffersError(f"{key} {damage}")
            elif index < num_staged or any(piece.shared for piece in each.tensors):
                if index >= num_staged or self._seals[index] != each:
                    raise _DiffersError(_OTHER_CONTENT.format(key))
            else:
                self._verify(each)

    def _verify(self, own: SealedBlob) -> None:
        """Read a blob of the rank's *own* from the store, and compare all of its hashes."""
        blob = own.blob
        try:
            data = self._retry(partial(get_at_most, self._ways.store, blob.key, blob.num_bytes))
        except KeyError:
            raise _DiffersError(f"{blob.key} {GONE}") from None
        except ValueError as error:
            raise _DiffersError(f"{blob.key}: {error}") from None
        if not is_intact(memoryview(data), blob, own.tensors):
            raise _DiffersError(f"{blob.key} has changed: its hash differs")


class _DiffersError(Exception):
    """Something differs from what the rank has prepared, or is missing. The message says what. Nothing was put."""
