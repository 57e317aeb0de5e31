"""
What is stored, and the rules that make a checkpoint visible whole or not at all. ``docs/format.md`` is the contract.

The training process and the pusher both run this code. It imports no torch and knows stores by their verbs only. What
must never break: a step is committed once the manifest of every rank exists, and a reader decides that from names and
bytes alone. Begin with :mod:`.keys` and :mod:`.manifest`, then read :mod:`.commit`.
"""
