"""
The exact position of training in its data.

Lives here: the order of samples, a loader that keeps it, positions in any loader, and shields for worker processes.
Runs in: the training thread of every rank; a shield runs in the loader's worker processes.
Must never break: a resumed training sees the samples that an uninterrupted training would have seen.
Begin with: :mod:`.position`, then :mod:`.sampler`. :mod:`.internals` has all private names of torch.
"""

from .grouped import GroupedByLength
from .loader import elastic_loader
from .position import LoaderPosition
from .sampler import ElasticSampler
from .tracked import TrackedLoader
from .unwrap import samplers
from .workers import end_shielded_workers, shield_workers

__all__ = [
    "ElasticSampler",
    "GroupedByLength",
    "LoaderPosition",
    "TrackedLoader",
    "elastic_loader",
    "end_shielded_workers",
    "samplers",
    "shield_workers",
]
