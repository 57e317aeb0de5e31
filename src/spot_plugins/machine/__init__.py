"""
Facts about this machine and what is installed on it: host memory, and versions of packages.

Callers are on any thread, and in the process of ``spot doctor`` as well, so this package never imports torch. Nothing
here waits: each fact is read from files of the kernel or of installed packages. Begin with :mod:`.versions`.
"""

from __future__ import annotations
