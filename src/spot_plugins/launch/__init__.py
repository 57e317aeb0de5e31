"""
Processes around a training: ``spot run`` in front of a launcher, and the roster by which it knows the ranks.

:mod:`.supervisor` runs in a process of its own, which imports no torch. :mod:`.launcher` and :mod:`.roster` run in each
training process too. What must never break: a signal to ``spot run`` reaches every rank, and its exit code is 143 after
a preemption. Begin with :mod:`.supervisor`.
"""
