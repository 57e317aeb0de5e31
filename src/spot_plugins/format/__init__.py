"""
Objects of a run in a store: names, manifests, the commit point, attempts and retention. See ``docs/format.md``.

The training process and the pusher process both run this code, on any thread. It imports no torch, and uses a store
only through :class:`~spot_plugins.store.ObjectStore`. The rule that must never break: a step is committed once the
manifest of every rank exists, and a reader decides this from names and bytes alone. Begin with :mod:`.keys` and
:mod:`.manifest`, then read :mod:`.commit`.
"""
