"""Sandboxes for a command: a real filter of system calls, and a user namespace."""

from __future__ import annotations

import errno
import platform
import shutil
import struct
import subprocess
import sys

import pytest

_LOAD, _EQUAL, _ANSWER = 0x20, 0x15, 0x06
_REFUSE, _ALLOW = 0x00050000 | errno.EPERM, 0x7FFF0000
_NUMBERS = {"x86_64": {"prctl": 157, "kill": 62}, "aarch64": {"prctl": 167, "kill": 129}}


def without(call, words, *, first_argument=None):
    """Return *words*, a command, as one to which the kernel refuses *call* with EPERM, if it has this argument."""
    conditions = [(0, _NUMBERS[platform.machine()][call])]
    if first_argument is not None:
        conditions.append((16, first_argument))
    program = [(_ANSWER, 0, 0, _REFUSE), (_ANSWER, 0, 0, _ALLOW)]
    for offset, value in reversed(conditions):
        program = [(_LOAD, 0, 0, offset), (_EQUAL, 0, len(program) - 1, value), *program]
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    script = "import ctypes, os, struct; libc = ctypes.CDLL(None, use_errno=True); "
    script += f"code = ctypes.create_string_buffer({code!r}); head = struct.pack('HP', {len(program)}, "
    script += "ctypes.addressof(code)); "
    script += "done = libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(head)); "
    script += f"assert not done, ctypes.get_errno(); os.execv({words[0]!r}, {words!r})"
    return [sys.executable, "-c", script]


def in_user_namespace(words, *flags):
    """Return *words*, a command, as one in a user namespace of its own, where permissions bind even root."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--user", *flags, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    return [unshare, "--user", *flags, *words]
