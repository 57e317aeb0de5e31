"""
The drill: a user's own training, left alone and interrupted, and what differs between the two.

Lives here: faults as values, the runner that starts the command, injects faults and starts it again, and the verdict.
Runs in: the main thread of ``spot drill``, or of a user's test. The training runs in processes of its own.
Must never break: no process of the training outlives the drill, and each wait has a limit.
Begin with: :mod:`.runner`, then :mod:`.faults` and :mod:`.verdict`. Nothing here imports torch.
"""

from __future__ import annotations
