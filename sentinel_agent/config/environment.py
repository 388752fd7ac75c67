"""Settings from `SENTINEL_*` variables and from the command line: the two sources that are written as text.

A variable's name is looked up in the table of settings, never taken apart, so `SENTINEL_TARGET_MAX_TARGETS` can only
mean `target.max_targets`. A name that no setting has is a warning, not a fault: an unknown variable may belong to
somebody else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sentinel_agent.config.decode import Decoder, close_match
from sentinel_agent.config.schema import PREFIX, Setting, settings_table
from sentinel_agent.errors import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_agent.config.hints import Place

CONFIG_VARIABLE = "SENTINEL_CONFIG"
"""Names the configuration file; read by the command line."""

# What Kubernetes and Docker links put into the environment for a service whose name starts with `sentinel`.
_SERVICE_LINK = re.compile(
    r"SENTINEL_\w*?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


def from_environment(
    variables: Mapping[str, str], faults: list[Fault], warnings: list[Fault]
) -> dict[Setting, Any]:
    """The settings that the environment gives; an empty variable is as if it were not there."""
    known = {setting.variable: setting for setting in settings_table()}
    found: dict[Setting, Any] = {}
    for name, text in sorted(variables.items()):
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or not text:
            continue
        if setting := known.get(name):
            _take(setting, text, f"environment {name}", found, faults)
        elif not _SERVICE_LINK.fullmatch(name):
            hint = close_match(name, list(known)) or ": `config print` lists them all"
            warnings.append(Fault("environment", name[:100], f"no setting has this variable{hint}"))
    return found


def from_overrides(overrides: Mapping[str, Any], faults: list[Fault]) -> dict[Setting, Any]:
    """The settings that the command line gives, by key (`sampler.interval`); None means not given."""
    known = {setting.name: setting for setting in settings_table()}
    found: dict[Setting, Any] = {}
    for name, value in overrides.items():
        if value is None:
            continue
        if setting := known.get(name):
            _take(setting, value, "command line", found, faults)
        else:
            faults.append(Fault("command line", name[:100], f"unknown key{close_match(name, list(known))}"))
    return found


def _take(setting: Setting, value: Any, source: str, found: dict[Setting, Any], faults: list[Fault]) -> None:
    def where(_: Place) -> str:
        return source

    decoder = Decoder(where, text=True)
    result = decoder.value(setting.hint, value, setting.path)
    faults.extend(decoder.faults)
    if not decoder.faults:
        found[setting] = result
