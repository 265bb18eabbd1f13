"""Runs a server for as long as the process that wants it: server_watch.py PARENT COMMAND...

A trainer that is killed can end nothing, and a server that outlives it would keep the GPU's memory.
This script imports nothing of the package, and is run by its path.
"""

import os
import signal
import subprocess
import sys
import time

CHECK_S = 0.5
END_S = 10.0


def main(parent: int, command: list[str]) -> int:
    """Returns the exit status of ``command``, or ends the process group with ``parent``."""
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    # Who ends the group waits for the server, not for this process.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while server.poll() is None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGTERM)
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(0, signal.SIGKILL)
        time.sleep(CHECK_S)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
