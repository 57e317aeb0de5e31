"""A real filter of system calls, as sandboxes have them, for a command."""

from __future__ import annotations

import errno
import platform
import struct
import sys

_LOAD, _EQUAL, _ANSWER = 0x20, 0x15, 0x06
_REFUSE, _ALLOW = 0x00050000 | errno.EPERM, 0x7FFF0000
_NUMBERS = {
    "x86_64": {"prctl": 157, "kill": 62},
    "aarch64": {"prctl": 167, "kill": 129},
}


def without(calls, words):
    """
    Return *words*, a command, as one whose *calls* the kernel refuses with EPERM.

    A call is a name, or a pair of a name and the first argument for which it is refused.
    """
    program = []
    for call in calls:
        name, *arguments = [call] if isinstance(call, str) else call
        tests = [(0, _NUMBERS[platform.machine()][name]), *((16, argument) for argument in arguments)]
        for place, (offset, value) in enumerate(tests):
            program += [(_LOAD, 0, 0, offset), (_EQUAL, 0, 2 * (len(tests) - place) - 1, value)]
        program.append((_ANSWER, 0, 0, _REFUSE))
    code = b"".join(struct.pack("HBBI", *each) for each in [*program, (_ANSWER, 0, 0, _ALLOW)])
    script = "import ctypes, os, struct; libc = ctypes.CDLL(None, use_errno=True); "
    script += f"code = ctypes.create_string_buffer({code!r}); head = struct.pack('HP', {len(code) // 8}, "
    script += "ctypes.addressof(code)); "
    script += "done = libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(head)); "
    script += f"assert not done, ctypes.get_errno(); os.execv({words[0]!r}, {words!r})"
    return [sys.executable, "-c", script]
