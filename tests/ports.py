"""Free ports of the loopback interface."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
