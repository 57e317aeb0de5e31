"""Python imports this by its name before anything else. A pusher with this folder on its module path stands still."""

from __future__ import annotations

import threading

threading.Event().wait()
