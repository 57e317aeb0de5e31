"""
From a notice to exit code 143: the listener for notices, the plan for the time that they leave, and the way out.

Signals arrive on a thread of their own, other notices on the thread of the poller. Leaving runs on the training thread,
or on a thread of the agreement. What must never break: after a notice every rank saves the same step and ends before
the deadline. Begin with :mod:`.way_out`, then read :mod:`.departure` and :mod:`.plan`, which is pure.
"""
