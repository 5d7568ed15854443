"""Becoming another user while keeping one of root's rights: a web process that listens on port 443 is not root.

Linux only, and between fork and exec only: the right is made ambient, which survives the exec of an ordinary program.
"""

import ctypes
import os

NET_BIND_SERVICE = 10

_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2
_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def become(uid: int, gid: int, capability: int) -> None:
    """This process is that user from now on. Where the right itself is denied to us the user goes without: the bind will say so."""
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)
    sets = (_Sets * 2)()  # version 3 has two words of each
    bit = 1 << capability
    sets[0] = _Sets(effective=bit, permitted=bit, inheritable=bit)
    if _libc.capset(ctypes.byref(_Header(version=_VERSION_3, pid=0)), ctypes.byref(sets)) == 0:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
