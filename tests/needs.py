"""Programs that some tests need and `make` installs where it may: skipped where one is missing, but never in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def program(name: str) -> str:
    """The path of a program; without it the test is skipped, and fails where CI is set, which promises it."""
    found = shutil.which(name)
    if found is None:
        missing(f"`{name}` is not installed; `make test` as root on Debian installs it (tests/debian.txt)")
    return found


def missing(what: str) -> NoReturn:
    """Skip the test for want of `what`; fail it where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)
