"""Certificates that have expired or will soon, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sentinel_agent.errors import OperatorError
from sentinel_agent.proxy.tls import certificates_of

if TYPE_CHECKING:
    from sentinel_agent.proxy.config import ProxyConfig

SOON_DAYS: Final = 14
_DAY: Final = 86400.0


def warnings_of(config: ProxyConfig, now: float) -> list[str]:
    """A line for each certificate that has expired at `now` (seconds since the epoch), or will within `SOON_DAYS`.

    It is served all the same: clients that refuse it get no worse answer than none.
    """
    try:
        certificates = certificates_of(config)
    except OperatorError as error:  # changed since it was read: the next look at the files says what is wrong
        return [f"warning: {error.message}"]
    lines = []
    for each in certificates:
        days = (each.not_after - now) / _DAY
        if days < 0:
            lines.append(
                f"warning: the certificate {each.path} has expired {-days:.0f} days ago: replace its file"
            )
        elif days < SOON_DAYS:
            lines.append(f"warning: the certificate {each.path} expires in {days:.0f} days: replace its file")
    return lines
