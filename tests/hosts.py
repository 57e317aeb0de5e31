"""
Hosts for tests: network namespaces of this machine, on one bridge. They share disks and process ids.

Namespaces need root and the program ``ip``. Where one is missing, :func:`hosts_missing` says so, and tests are skipped.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import uuid
from contextlib import ExitStack, contextmanager, suppress

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NOBODY = "02:00:00:00:00:fe"  # the address of no interface
_libc = ctypes.CDLL(None, use_errno=True)


def hosts_missing():
    """Return the reason why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip, of Debian's package iproute2"
    try:
        with Network():
            return None
    except subprocess.CalledProcessError as error:
        return f"this machine makes no network namespaces: {error.stderr.strip()}"


class Host:
    """A network namespace with an address of its own. Processes and sockets made within :meth:`entered` are on it."""

    def __init__(self, name, address=None):
        self.name = name
        self.address = address

    @contextmanager
    def entered(self):
        """Let the calling thread be on this host, and the threads and processes that it starts."""
        with ExitStack() as stack:
            before = stack.enter_context(open(f"/proc/self/task/{threading.get_native_id()}/ns/net"))
            stack.callback(_enter, before)
            _enter(stack.enter_context(open(f"/run/netns/{self.name}")))
            yield


class Network:
    """Hosts on one bridge. The bridge is on :attr:`steady`, a host that nothing happens to."""

    def __init__(self):
        self._mark = f"spot-{uuid.uuid4().hex[:8]}"
        self._hosts = []
        self.steady = self._new("10.77.0.1")

    def __enter__(self):
        try:
            steady = self._open(self.steady)
            _ip("-n", steady, "link", "add", "bridge", "type", "bridge")
            _ip("-n", steady, "address", "add", f"{self.steady.address}/24", "dev", "bridge")
            _ip("-n", steady, "link", "set", "bridge", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for host in self._hosts:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", host.name)

    def host(self):
        """Return a new host, on the interface ``eth0``."""
        host = self._new(f"10.77.0.{len(self._hosts) + 1}")
        name = self._open(host)
        _ip("-n", self.steady.name, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", self.steady.name, "link", "set", name, "master", "bridge", "up")
        _ip("-n", name, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        return host

    def unplug(self, host):
        """Let nothing pass to or from *host*. Nobody learns of it: there is no reset and no refusal."""
        _ip("-n", self.steady.name, "link", "set", host.name, "down")

    def lose_way(self, host, *others):
        """Let nothing from *host* arrive at *others*. What they send to *host* arrives."""
        for other in others:
            _ip("-n", host.name, "neighbor", "replace", other.address, "lladdr", _NOBODY, "dev", "eth0")

    def restore(self, host):
        """Undo :meth:`unplug` and :meth:`lose_way`."""
        _ip("-n", self.steady.name, "link", "set", host.name, "up")
        _ip("-n", host.name, "neighbor", "flush", "all", "nud", "all")

    def _new(self, address):
        host = Host(f"{self._mark}-{len(self._hosts)}", address)
        self._hosts.append(host)
        return host

    def _open(self, host):
        _ip("netns", "add", host.name)
        _ip("-n", host.name, "link", "set", "lo", "up")
        return host.name


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _enter(namespace):
    if _libc.setns(namespace.fileno(), _NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "this thread cannot enter the network namespace")
