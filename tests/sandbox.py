"""A real filter of system calls, as sandboxes have them, for a command."""

from __future__ import annotations

import errno
import platform
import struct
import sys

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
