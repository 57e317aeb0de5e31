"""
The way back from the store: join the run, salvage what only local disks have, find the newest step, read and verify it.

All of it runs on the training thread before the first step, except :mod:`.prefetch`, which has a thread of its own and
imports no torch. What must never break: no tensor is used before its hash was compared, and all ranks resume from the
same step. Begin with :mod:`.newest`, then read :mod:`.reader`.
"""
