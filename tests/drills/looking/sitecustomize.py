"""
Python imports this by its name before anything else. It makes the process, a pusher, look at frozen blobs all the time.

Used by test_frozen_damage.py.
"""

from __future__ import annotations

from spot_plugins.push import frozen_watch

frozen_watch.LOOK_S = 0.1
