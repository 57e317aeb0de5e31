"""
A command under ``spot run`` that waits without a limit, as torchrun does in C, and does not reap its rank that ended.

Run by test_supervised.py: ``main(port)`` is ``spot run``, and the script itself is the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from spot_plugins.launch import rendezvous, roster
from spot_plugins.launch.supervisor import supervise


def main(port):
    rendezvous.LOST_S, rendezvous.PROBE_S = 1.0, 0.2
    os._exit(supervise([sys.executable, __file__, "--rdzv-endpoint", f"127.0.0.1:{port}"], 10.0))


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        roster.join()
        sys.exit()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank = subprocess.Popen([sys.executable, __file__, "rank"], stdout=subprocess.PIPE)
    rank.stdout.read()
    print("the rank has ended", flush=True)
    time.sleep(60)
