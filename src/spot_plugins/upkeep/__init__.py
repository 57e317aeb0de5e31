"""
Upkeep of stored runs from the command line: list, verify, compare, prune and copy their steps.

Each function runs on the main thread of a ``spot`` process, and reads on a pool of threads. No training calls this
package, and it imports no torch. What must never break: nothing that a resume may need is removed, and a copy is
committed only after each of its bytes was verified. Begin with :mod:`.listing`, then read :mod:`.blobs`.
"""
