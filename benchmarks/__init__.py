"""The benchmarks, each beside other checkpointers. Begin with ``python -m benchmarks --help``."""
