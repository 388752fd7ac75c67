"""The limit records that the store keeps, as the rule engine wants them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from sentinel_agent.core.limits import LimitRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sentinel_agent.store.index import Key
    from sentinel_agent.store.store import Store

log = logging.getLogger(__name__)


def encode_limits(records: Iterable[LimitRecord]) -> dict[Key, bytes]:
    """What `Store.put_limits` takes."""
    return {(record.role, record.rule): msgspec.json.encode(record) for record in records}


def stored_limits(store: Store) -> list[LimitRecord]:
    """The records of the store; those lost with a damaged index are made again from the incidents.

    Raises:
        StoreError: the store cannot be read.
    """
    found: dict[Key, LimitRecord] = {}
    for fire in store.fires():
        if not fire.cooldown_until:  # the target was spared: the rule did not fire
            continue
        key = (fire.role, fire.rule)
        earlier = found.get(key, LimitRecord(role=fire.role, rule=fire.rule))
        found[key] = LimitRecord(
            role=fire.role,
            rule=fire.rule,
            fires=(*earlier.fires, (fire.time, fire.value)),
            cooldown_until=max(earlier.cooldown_until, fire.cooldown_until),
            cooldown=max(0.0, fire.cooldown_until - fire.time),
        )
    for key, content in store.limits().items():
        try:
            found[key] = msgspec.json.decode(content, type=LimitRecord)
        except (
            ValueError,
            RecursionError,
        ) as error:  # msgspec's errors are ValueErrors, bad UTF-8 is another
            log.warning("the limit record of %s is damaged and left out: %s", "/".join(key), error)
    return list(found.values())
