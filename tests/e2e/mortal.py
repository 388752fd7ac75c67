"""A target that dies as it is told, one word a line on stdin; what it burns, and until when, stands in a file."""

import ctypes
import faulthandler
import mmap
import resource
import struct
import sys
import threading
import time
from pathlib import Path

faulthandler.disable()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
LOG = Path(sys.argv[1])


def burn_in_the_morning(log: mmap.mmap) -> None:
    while WORD == "morning":
        log[:8] = struct.pack("=d", time.time())  # noqa: TID251 - its own truth


def burn_until_the_end(log: mmap.mmap) -> None:
    while WORD != "stop":
        log[:8] = struct.pack("=d", time.time())  # noqa: TID251 - its own truth


def burn(log: mmap.mmap) -> None:
    """Outlives the main thread's waiting for words: a kill comes in the middle of it."""
    while WORD != "stop":
        {"morning": burn_in_the_morning, "spike": burn_until_the_end}.get(WORD, lambda _: time.sleep(0.01))(
            log
        )


WORD = ""
LOG.write_bytes(bytes(8))
KEPT: list[bytearray] = []


def main() -> None:
    global WORD  # noqa: PLW0603 - what the burning thread looks at
    with LOG.open("r+b") as file:
        log = mmap.mmap(file.fileno(), 8)
    threading.Thread(target=burn, args=(log,), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, figure = line.strip().partition(" ")
        if word == "crash":
            ctypes.string_at(0)
        elif word == "exit":
            sys.exit(int(figure))
        elif word == "grow":
            while True:
                KEPT.append(bytearray(b"x" * 2**20))
        WORD = word


main()
