"""Types of command-line options that are written as in the configuration."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

import click

from sentinel_agent.clock import SystemClock
from sentinel_agent.core.units import parse_duration

if TYPE_CHECKING:
    from click import Context, Parameter


class DurationType(click.ParamType[float]):
    """`500ms`, `30s`, `1h30m`; seconds as a float."""

    name = "duration"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class RegexType(click.ParamType[str]):
    """A regular expression, checked and returned as text."""

    name = "regex"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> str:
        try:
            re.compile(str(value))
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)
        return str(value)


class TimeType(click.ParamType[float]):
    """`2h` (that long ago), a local date or time in ISO 8601, or seconds since the epoch; the latter as a float."""

    name = "time"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> float:
        text = str(value)
        if re.fullmatch(r"\d{9,11}(\.\d+)?", text):
            return float(text)
        try:
            return SystemClock().wall() - parse_duration(text)
        except ValueError:
            pass
        try:
            return datetime.datetime.fromisoformat(text).astimezone().timestamp()
        except (ValueError, OverflowError):
            self.fail(
                f"{text!r} is no time: expected for example 2h, 2026-11-23T04:15 or 1763871300", param, ctx
            )
