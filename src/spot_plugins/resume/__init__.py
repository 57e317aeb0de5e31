"""
The resume: join the run, salvage a step that only local disks have, find the newest step, read and verify it.

All of it runs on the training thread before the first step. :mod:`.reader` reads on a pool of threads. :mod:`.prefetch`
has threads of its own and imports no torch. What must never break: no tensor is used before its hash was compared, and
all ranks resume from the same step. Begin with :mod:`.restore`, then read :mod:`.newest` and :mod:`.reader`.
"""
