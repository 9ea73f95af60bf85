"""Runs a command that dies with who started it, however that one dies (Linux, prctl(2)).

`python -m services.cli.node.leash PARENT COMMAND…`: the kernel kills the process when PARENT is no
more. Between fork and exec nothing of Python may run, so a program of its own asks for it, and then
becomes the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    if os.getppid() == parent:  # else it died before the kernel was asked
        os.execv(command[0], command)


if __name__ == "__main__":
    main()
