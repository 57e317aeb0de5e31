"""
From a notice to exit code 143: who hears of a notice, what is done with the time that it leaves, and the way out.

Signals arrive on the main thread, other notices on the thread of the poller; leaving runs on the training thread or on
a thread of the agreement. What must never break: after a notice every rank saves the same step and ends before the
deadline. Begin with :mod:`.listener`, then read :mod:`.plan`, which is pure.
"""
