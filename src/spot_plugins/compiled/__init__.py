"""
The code that ``torch.compile`` has made, kept in the store with the run, for ``compile_cache=True`` alone.

Lives here: what makes two machines exchange compiled code, the archive in the store, and what is torch's own.
Runs in: a thread of the trainer, which gets and puts archives, and the training thread, which loads one at the start.
Must never break: without the setting nothing is loaded, and no failure reaches training.
Begin with: :mod:`.cache`. An archive holds pickles and machine code, which run: ``SECURITY.md`` says what is trusted.
"""

from __future__ import annotations

from .cache import CompileCache

__all__ = ["CompileCache"]
