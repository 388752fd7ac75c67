"""Plain data into settings and rules: every fault with its path, and nothing but faults whatever comes in."""

from __future__ import annotations

import datetime
import math
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.config.decode import MAX_FAULTS, MAX_NODES, Decoder
from sentinel_agent.config.settings import Settings
from sentinel_agent.core.rule import CaptureSpec, Rule, RuleFile, Trigger


def faults_of(kind: type[msgspec.Struct], data: object) -> dict[str, str]:
    decoder = Decoder(lambda path: "there")
    found = decoder.decode(kind, data)
    assert (found is None) == bool(decoder.faults)
    return {fault.path: fault.message for fault in decoder.faults}


def rule(**keys: object) -> dict[str, object]:
    return {"rules": [{"name": "a", "metric": "cpu", "trigger": {"abs": 1}, **keys}]}


def decoded_rule(**keys: object) -> Rule:
    decoder = Decoder(lambda path: "there")
    found = decoder.decode(RuleFile, rule(**keys))
    assert found, decoder.faults
    return found.rules[0]


def test_ten_faults_are_ten_faults() -> None:
    """A document with ten different faults gives those ten, each with its path, and no eleventh."""
    document = {
        "listen": "0.0.0.0:99999",
        "target": {"match": "([", "servce": "x"},
        "sampler": {"interval": "1ms", "history": -5},
        "capture": {"concurrency": "two", "cpu_max": math.inf},
        "store": [1],
        "rules": [
            {"name": "a", "metric": "cpu", "trigger": {"abs": 1}},
            {"name": "b", "trigger": {"min": "x", "abs": 90}},
            {"capture": ["stacks", {"kind": "profile", "rate": 5000}], "name": "c", "trigger": "cpu > 1.0"},
        ],
    }
    assert list(faults_of(Settings, document)) == [
        "listen",
        "target.match",
        "target.servce",
        "sampler.interval",
        "sampler.history",
        "capture.concurrency",
        "capture.cpu_max",
        "store",
        "rules[1].trigger.min",
        "rules[2].capture[1].rate",
    ]


def test_faults_say_found_and_expected() -> None:
    """A fault names what was found, the bounds in the setting's own unit, and the likely key."""
    found = faults_of(Settings, {"sampler": {"interval": "1ms", "intervall": 1, "ring_bytes": 1}})
    assert found == {
        "sampler.interval": "expected a duration from 50ms to 1m; found the text '1ms'",
        "sampler.intervall": "unknown key: did you mean `interval`?",
        "sampler.ring_bytes": "expected a size from 16KiB to 64MiB; found 1",
    }


@pytest.mark.parametrize("hold", ["90s", "1m30s", 90, 90.0, "90", " 90s "])
def test_durations_as_people_write_them(hold: object) -> None:
    """A duration is a number of seconds or its written form."""
    assert decoded_rule(hold=hold).hold == 90.0


def test_listening_may_be_switched_off() -> None:
    """`off` is no address and no fault."""
    assert faults_of(Settings, {"listen": "off"}) == {}


@pytest.mark.parametrize("size", ["64KiB", 65536, "65536", "65.536k"])
def test_sizes_as_people_write_them(size: object) -> None:
    """A size is a number of bytes or its written form."""
    assert decoded_rule(capture=[{"kind": "profile", "max_bytes": size}]).captures()[0].max_bytes == 65536


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, "-5s", "5x", "", math.nan, math.inf, True, None, [], {}, "9" * 400, 10**400, "1h-5m"],
)
def test_no_duration(value: object) -> None:
    """A duration is never negative, endless, NaN, a boolean or nothing."""
    assert list(faults_of(RuleFile, rule(hold=value))) == ["rules[0].hold"]


@pytest.mark.parametrize("value", [-1, "-1", "1.5.5G", "9" * 400 + "G", 1.5, True, 2**63, "9999999999G"])
def test_no_size(value: object) -> None:
    """A size is a whole number of bytes that a 64-bit integer can hold."""
    assert list(faults_of(Settings, {"limits": {"memory": value}})) == ["limits.memory"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "5", True])
def test_thresholds_are_finite_numbers(value: object) -> None:
    """A threshold that no reading can be compared with is refused, unit or not."""
    assert list(faults_of(RuleFile, rule(trigger={"abs": value}))) == ["rules[0].trigger.abs"]


def test_short_forms() -> None:
    """A trigger may be text, and a capture its kind alone."""
    found = decoded_rule(trigger="cpu > 1.0", capture=["stacks", {"kind": "profile", "duration": "5s"}])
    assert found.trigger == "cpu > 1.0"
    assert found.captures() == (CaptureSpec("stacks"), CaptureSpec("profile", duration=5.0))
    assert decoded_rule(trigger={"abs": 1, "max": None}).trigger == Trigger(abs=1.0)


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"trigger": ["cpu"]}, "rules[0].trigger"),
        ({"trigger": None}, "rules[0].trigger"),
        ({"trigger": ""}, "rules[0].trigger"),
        ({"capture": "stacks"}, "rules[0].capture"),
        ({"capture": ["../etc"]}, "rules[0].capture[0]"),
        ({"capture": [{"rate": 5}]}, "rules[0].capture[0].kind"),
        ({"name": "a\n"}, "rules[0].name"),
        ({"metric": "cpu\n"}, "rules[0].metric"),
        ({"description": "\x1b[31m"}, "rules[0].description"),
        ({"description": "\ud800"}, "rules[0].description"),
        ({"match": {"service": "("}}, "rules[0].match.service"),
        ({"enabled": "yes"}, "rules[0].enabled"),
        ({"baseline": {"kind": "meen"}}, "rules[0].baseline.kind"),
    ],
)
def test_rule_faults(keys: dict[str, object], path: str) -> None:
    """What a rule may not say is refused at its own place."""
    assert list(faults_of(RuleFile, rule(**keys))) == [path]


def test_missing_keys() -> None:
    """A required key that is missing is a fault at the place where it should be."""
    assert list(faults_of(RuleFile, {"rules": [{}]})) == ["rules[0].name", "rules[0].trigger"]


def test_empty_sections_are_defaults() -> None:
    """A section whose every key is commented out means the defaults."""
    assert Decoder(lambda _: "").decode(Settings, {"sampler": None, "rules": None}) == Settings()


@pytest.mark.parametrize("document", [[], "text", 5, True, datetime.date(2024, 1, 1)])
def test_no_mapping(document: object) -> None:
    """A document that is no mapping is one fault."""
    assert list(faults_of(Settings, document)) == [""]


def test_regular_expression_with_a_future_warning() -> None:
    """An expression that Python only warns about is accepted without a warning."""
    assert faults_of(Settings, {"target": {"match": "[[a]"}}) == {}


def test_secrets_are_not_shown() -> None:
    """The value of a key that looks like a secret is not repeated in a fault."""

    class Login(msgspec.Struct):
        api_token: int = 0

    assert "hunter2" not in faults_of(Login, {"api_token": "hunter2"})["api_token"]


def test_long_values_are_cut() -> None:
    """A fault about a value of a megabyte is a line, not a megabyte."""
    assert len(faults_of(Settings, {"listen": "x" * 10**6})["listen"]) < 200
    (path,) = faults_of(Settings, {"k" * 10**6: 1})
    assert len(path) < 100


def test_faults_are_bounded() -> None:
    """A document of faults ends in one that says that more are not listed."""
    found = faults_of(Settings, {f"k{number}": 1 for number in range(5000)})
    assert len(found) == MAX_FAULTS + 1
    assert "not listed" in found[""]


def test_alias_bomb() -> None:
    """Data that is small in memory but huge when written out is refused after a bounded number of values."""
    capture = ["stacks"] * 400
    rules = [{"name": "a", "trigger": "cpu > 1.0", "capture": capture}] * 4000
    found = faults_of(RuleFile, {"rules": rules})
    assert f"more than {MAX_NODES} values" in found[""]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)
words = st.sampled_from(
    [
        "rules",
        "name",
        "trigger",
        "capture",
        "kind",
        "sampler",
        "interval",
        "abs",
        "match",
        "listen",
        "baseline",
    ]
)
shaped = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=30,
)


@given(shaped, st.sampled_from([Settings, RuleFile]), st.booleans())
def test_anything_gives_a_struct_or_faults(data: object, kind: type[msgspec.Struct], text: bool) -> None:
    """Whatever the data, there is a struct or there are faults, never an exception."""
    decoder = Decoder(lambda _: "there", text=text)
    assert (decoder.decode(kind, data) is None) == bool(decoder.faults)


@given(plain.map(lambda value: {"rules": [{"name": "a", "trigger": {"abs": value}, "hold": value}]}))
def test_what_is_accepted_is_sound(data: object) -> None:
    """A rule that is accepted has a finite threshold and a hold that is a duration."""
    found = Decoder(lambda _: "there").decode(RuleFile, data)
    if found:
        (made,) = found.rules
        assert made.hold >= 0
        assert isinstance(made.trigger, Trigger)
        assert made.trigger.abs is None or math.isfinite(made.trigger.abs)


def test_decoding_many_rules_is_quick() -> None:
    """Thousands of rules decode in linear time: twenty times as many take less than a hundred times as long."""

    def seconds(count: int) -> float:
        data = {
            "rules": [{"name": f"r{n}", "trigger": {"abs": 1}, "capture": ["stacks"]} for n in range(count)]
        }
        start = time.process_time()
        assert Decoder(lambda _: "").decode(RuleFile, data)
        return time.process_time() - start

    assert seconds(4000) < 100 * max(seconds(200), 0.005)
