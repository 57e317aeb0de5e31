"""
The event log of a run: each event of each rank with its time, as lines of JSON in the store.

Lives here: the form of a record, the recorder, the segments in a store, their reader, and the subscribers that get the
same calls as the recorder. See ``docs/format.md``.
Runs in: a thread of the trainer, which passes records on, and one or two of the pusher process, which put them.
Must never break: no failure of the log reaches training, and a reader trusts no byte of a segment.
Begin with: :mod:`.records`, then :mod:`.recorder` and :mod:`.segments`. Nothing here imports torch.
"""

from __future__ import annotations
