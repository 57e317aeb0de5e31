"""Exact data position: the order of samples, the loader that keeps it, where it stands, and its workers."""

from .loader import elastic_loader
from .position import LoaderPosition
from .sampler import ElasticSampler
from .unwrap import samplers
from .workers import end_shielded_workers, shield_workers

__all__ = ["ElasticSampler", "LoaderPosition", "elastic_loader", "end_shielded_workers", "samplers", "shield_workers"]
