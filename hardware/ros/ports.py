"""Ports of nodes that were killed: a node that starts beside the survivors must not take them.

Fast DDS passes messages between processes of one machine through files in /dev/shm, one for each port that somebody
receives on. When a receiver is killed and a new one takes its number, it makes a new file. A sender that holds the old
one open notices that its receiver has stopped, but not one that was killed between two steps of its loop: then it
writes into the deleted file for ever, and the new node never hears it (Fast-DDS issue 5469). So a new node leaves such
numbers alone: Fast DDS takes the lowest that are free, and here they are not while it looks.
"""

import fcntl
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
BASE = 7400
"""Of the port numbers of RTPS; from here on a number for data belongs to the one for discovery below it."""
MOST = 16
"""Nodes that are remembered, the latest ones: discovery on one machine looks at the first 32 of a domain."""


def abandoned(memory: Path = MEMORY) -> list[int]:
    """Ports with a file in shared memory on which nobody receives, the latest first."""
    found = []
    for file in memory.glob("fastdds_port*"):
        match = re.fullmatch(r"fastdds_port(\d{1,5})", file.name)
        if not match:
            continue
        try:
            with open(f"{file}_el", "rb") as lock:
                # A receiver holds this lock as long as it lives.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            # A sender has made the file again.
            pass
        except OSError:
            continue
        try:
            found.append((file.stat().st_mtime, int(match[1])))
        except OSError:
            continue
    return [port for _, port in sorted(found, reverse=True)]


@contextmanager
def past_the_dead(memory: Path = MEMORY) -> Iterator[list[int]]:
    """While it lasts, new participants choose other ports than those of killed ones, which are yielded."""
    with ExitStack() as held:
        # A node has one port above `BASE`, by its domain, and one below.
        ports = abandoned(memory)
        ports = [p for p in ports if p >= BASE][:MOST] + [p for p in ports if p < BASE][:MOST]
        for port in ports:
            # Busy already serves as well.
            with suppress(OSError):
                if port < BASE:
                    # Shared memory chooses these by itself.
                    lock = held.enter_context(open(memory / f"fastdds_port{port}_el", "ab"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                else:
                    # Two for each participant, by the first number whose UDP port for discovery is free.
                    held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("", port - 1))
        yield ports
