"""A target that does what it is told, one word a line on stdin, and answers `done`; its code is the ground truth."""

import sys
import time

KEPT: list[bytes] = []


def burn_as_told(seconds: float) -> None:
    end, total = time.process_time() + seconds, 0
    while time.process_time() < end:
        for i in range(1000):
            total += i * i


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, figure = line.strip().partition(" ")
        if word == "burn":
            burn_as_told(float(figure))
        elif word == "keep":
            KEPT.append(b"x" * int(figure))
        elif word == "exit":
            sys.exit(int(figure))
        print("done", flush=True)


main()
