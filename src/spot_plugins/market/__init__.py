"""
Prices and availability of GPUs: one small module per provider, all behind one protocol.

Runs in the process of ``spot prices``, never in a training. Each provider is asked on a daemon thread of its own with
its own time limit, so that a provider that is down, slow or malformed costs its own rows and one line. Keys must never
reach a message, a cache file or another host. Begin with :mod:`.base`, then read :mod:`.ask` and one provider.
"""
