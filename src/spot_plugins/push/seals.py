"""The seals of a step's blobs: hashes that are computed on threads, each for whoever needs it first."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future

from ..format.keys import StepId
from ..format.manifest import RankManifest, TensorSlice
from .messages import PushJob, PushSettings, SealedBlob, manifest_of, seal


class Seals:
    """
    The blobs of one job. Every method waits for the hashes that it needs. Callable from any thread.

    Args:
        job: The step.
        settings: The settings of its rank.
        images: The bytes of its blobs.
        stored_before: Blobs that were stored before and belong to the step too.
    """

    def __init__(
        self, job: PushJob, settings: PushSettings, images: Sequence[memoryview], stored_before: Sequence[SealedBlob]
    ) -> None:
        self._job = job
        self._settings = settings
        self.images = images
        self._stored_before = stored_before
        self._futures: list[Future[SealedBlob]] = []

    def begin(self, pool: Executor) -> None:
        """Hash all blobs on the threads of *pool*."""
        slices: list[list[TensorSlice]] = [[] for _ in self.images]
        for piece in self._job.tensors:
            slices[piece.blob].append(piece)
        first = sorted(range(len(self.images)), key=lambda index: index not in self.own)  # whose puts are first
        futures = {
            index: pool.submit(seal, self._job, index, self.images[index], slices[index], self._settings)
            for index in first
        }
        self._futures = [futures[index] for index in range(len(self.images))]

    def __getitem__(self, index: int) -> SealedBlob:
        # wait: until the blob is hashed; that reads memory alone
        return self._futures[index].result()

    @property
    def step_id(self) -> StepId:
        """The checkpoint that the blobs belong to."""
        return StepId(self._job.step, self._settings.attempt)

    @property
    def frozen(self) -> dict[int, SealedBlob]:
        """The frozen blobs that the job brings, by index."""
        return {index: self[index] for index, image in enumerate(self._job.blobs) if image.is_frozen}

    @property
    def own(self) -> list[int]:
        """The blobs that hold nothing but tensors of the rank's own, by index. Empty unless the job is prepared."""
        if not self._job.is_prepared:
            return []
        shared = {piece.blob for piece in self._job.tensors if piece.shared}
        return [i for i, image in enumerate(self._job.blobs) if not image.is_frozen and i not in shared]

    def manifest(self) -> RankManifest:
        """Return the manifest of the step."""
        # wait: until all blobs are hashed; that reads memory alone
        sealed = [each.result() for each in self._futures]
        return manifest_of(self._job, [*sealed, *self._stored_before], self._settings)
