"""Programs that end with the process that started them, even when that is killed.

Not by `preexec_fn`: a child that is forked while gRPC is at work runs gRPC's threads until its program begins, and they crash when
their descriptors are closed (grpc/grpc#43055). Without it nothing of this process runs in the child.
"""

import signal
import sys
from collections.abc import Sequence

SET_PARENT_DEATH_SIGNAL = 1
_BEGIN = (
    "import ctypes, os, sys; "
    f"ctypes.CDLL(None).prctl({SET_PARENT_DEATH_SIGNAL}, {int(signal.SIGTERM)}); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); "  # it was gone before the kernel knew
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


def ending_with(parent: int, command: Sequence[object]) -> list[str]:
    """Return a command that is this one, and gets SIGTERM from the kernel when process `parent`, which starts it, has ended
    (prctl(2), PR_SET_PDEATHSIG). Where there is no such thing, the command as it is."""
    words = [str(word) for word in command]
    return [sys.executable, "-I", "-S", "-c", _BEGIN, str(parent), *words] if sys.platform == "linux" else words
