"""
Checks of the CUDA path on one GPU, in under eight minutes, with one table as the result: ``python -m gpu``.

Each check is a process of its own with a limit in seconds, so a hang, a device assert or a lack of memory in one check
costs no other check. Without a GPU the checks run on the CPU with tiny states. Begin with :mod:`.runner`, then read
:mod:`.checks`.
"""
