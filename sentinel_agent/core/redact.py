"""Secrets out of what is kept: command lines, environments, free text.

Two ways of knowing a secret: by the name beside it (`--password x`, `TOKEN=x`, `Authorization: x`), and by its
looks (credentials in a URL, JSON web tokens, prefixes that issuers give their tokens, long random words). A word
too many is taken out rather than one too few; names are always kept, since they help and hide nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REDACTED = "<redacted>"
MAX_ARGUMENTS = 1000
MAX_ARGUMENT = 4096

_SECRET_WORDS = frozenset(
    {"key", "keys", "otp", "pass", "passcode", "pin", "pwd", "salt", "sig", "signature", "signing"}
    | {"authorization", "bearer", "cookie", "creds", "dsn", "jwt", "session", "sessionid", "sid"}
)
_SECRET_PARTS = (  # also where a name runs its words together
    *("password", "passwd", "passphrase", "secret", "token", "credential"),
    *("apikey", "accesskey", "privatekey"),
)
_FILE_WORDS = frozenset({"file", "files", "path", "dir", "directory"})
_NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_URL_REST = re.compile(r"://([^\s\"'<>]+)")
_AUTH_SCHEME = re.compile(r"(?i)\b(bearer|basic)(\s+)[^\s\"',;]+")
_JWT = re.compile(r"\beyJ[\w-]{4,}\.[\w-]*\.?[\w-]*")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}-----|\Z)", re.DOTALL
)
_ISSUED = re.compile(
    r"\b(?:gh[oprsu]_|github_pat_|glpat-|xox[a-z]-|sk-|[spr]k_(?:live|test)_|whsec_|AKIA|ASIA|AIza|ya29\.|hf_|npm_"
    r"|pypi-|dop_v1_|SG\.|shp(?:at|ss)_|dckr_pat_|hvs\.|ATATT)[\w.-]{8,}"
)
_NAME = re.compile(r"""(?<![\w.-])([\w.-]++)["']?\s{0,3}[=:]\s{0,3}(?!//)""")
_VALUE = re.compile(r"""(["'])?((?(1)(?:\\.|(?!\1).)*|[^\s&;,"'}]+))""", re.DOTALL)
_REST_OF_LINE = re.compile(r"""()([^\r\n"']+)""")
_HEADER = re.compile(r"(?P<name>[A-Za-z_][\w.-]{0,99})(?P<mark>\s*[:=]\s*)(?P<value>[\s\S]+)")
_WORD = re.compile(r"[A-Za-z0-9+/_=-]{20,}")
_SEPARATOR = re.compile(r"[+/_=-]")
_USER_OPTIONS = frozenset({"-u", "--user", "--proxy-user"})

_HARMLESS = frozenset(
    {"HOME", "HOSTNAME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "MALLOC_ARENA_MAX", "PATH", "PWD"}
    | {"SHELL", "SHLVL", "TERM", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "WEB_CONCURRENCY"}
)
_HARMLESS_PREFIXES = ("LC_", "PYTHON", "KUBERNETES_SERVICE_")


def redact_command(argv: Sequence[str]) -> tuple[str, ...]:
    """A command line without its secrets, word for word; beyond 1000 words and 4096 characters a word it is cut.

    What follows an option with a secret's name is taken out whatever it is. `argv[0]`, paths and plain words stay.
    """
    kept: list[str] = []
    previous = ""
    for index, word in enumerate(argv[:MAX_ARGUMENTS]):
        shown = word if len(word) <= MAX_ARGUMENT else f"{word[:MAX_ARGUMENT]}..."
        if index == 0:
            kept.append(redact_text(shown))
        elif (previous.startswith("-") and "=" not in previous and _is_secret_name(previous)) or (
            previous in _USER_OPTIONS and ":" in word
        ):
            kept.append(REDACTED)
        else:
            kept.append(_redact_word(shown))
        previous = word[:MAX_ARGUMENT]
    if len(argv) > MAX_ARGUMENTS:
        kept.append(f"... {len(argv) - MAX_ARGUMENTS} more")
    return tuple(kept)


def redact_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Every name, and the value only of a few names that are known to be harmless.

    Their values too lose what looks like a secret.
    """
    return {
        name: _without_random_words(redact_text(value)) if _is_harmless(name) else REDACTED
        for name, value in environment.items()
    }


def redact_text(text: str) -> str:
    """Free text without credentials in URLs, bearer tokens, JSON web tokens, issued tokens and `password=...`."""
    text = _PRIVATE_KEY.sub(REDACTED, text)
    text = _URL_REST.sub(_redact_userinfo, text)
    text = _AUTH_SCHEME.sub(rf"\1\2{REDACTED}", text)
    text = _JWT.sub(REDACTED, text)
    text = _ISSUED.sub(REDACTED, text)
    return _redact_named(text)


def redact_document(value: Any) -> Any:
    """A document of names and values: text under a secret's name is taken out, other text as `redact_text` does."""
    if isinstance(value, dict):
        return {
            name: REDACTED if isinstance(each, str) and _is_secret_name(str(name)) else redact_document(each)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_document(each) for each in value]
    return redact_text(value) if isinstance(value, str) else value


def _redact_word(word: str) -> str:
    """One word of a command line: as free text, and `name=value` or `Name: value` as a whole."""
    whole = _HEADER.fullmatch(word.lstrip("-"))
    if whole and _is_secret_name(whole["name"]):
        dashes = word[: len(word) - len(word.lstrip("-"))]
        return f"{dashes}{whole['name']}{whole['mark']}{REDACTED}"
    return _without_random_words(redact_text(word))


def _redact_userinfo(found: re.Match[str]) -> str:
    """What follows `://`, up to the last @ in it: a password may hold any character, a path seldom holds an @."""
    userinfo, _, host = found[1].rpartition("@")
    if not userinfo or ("/" in userinfo and ":" not in userinfo):
        return found[0]
    return f"://{REDACTED}@{host}"


def _redact_named(text: str) -> str:
    """The values after secret names and `=` or `:`. One pass, since a value may itself hold a name and a value."""
    kept: list[str] = []
    end = 0
    while name := _NAME.search(text, end):
        kept.append(text[end : name.end()])
        end = name.end()
        pattern = _REST_OF_LINE if name[1].lower().endswith(("authorization", "cookie")) else _VALUE
        if _is_secret_name(name[1]) and (value := pattern.match(text, end)):
            quote = value[1] or ""
            kept.append(quote + REDACTED)
            end = value.end()
    kept.append(text[end:])
    return "".join(kept)


def _is_secret_name(name: str) -> bool:
    words = [word.lower() for word in _NAME_WORD.findall(name[:200])]
    if not words or words[-1] in _FILE_WORDS:
        return False
    joined = "".join(words)
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or any(part in joined for part in _SECRET_PARTS)
        or any(word.endswith("auth") for word in words)
    )


def _is_harmless(name: str) -> bool:
    known = name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES)
    return known and not _is_secret_name(name.removeprefix("PYTHON"))


def _without_random_words(text: str) -> str:
    return _WORD.sub(lambda word: _redact_random(word[0]), text)


def _redact_random(word: str) -> str:
    """Of a path only the parts that look random; a random word may have a slash in it too."""
    if not _looks_random(word):
        return word
    parts = word.split("/")
    if not parts[0] and any(map(_looks_random, parts)):
        return "/".join(REDACTED if _looks_random(part) else part for part in parts)
    return REDACTED


def _looks_random(word: str) -> bool:
    """At least 20 letters and digits, which mix more than words, names in capitals and dates do."""
    parts = _SEPARATOR.split(word)
    for part in parts:
        digits = sum(map(str.isdigit, part))
        if len(part) >= 20 and (digits >= 2 or (digits and part.isupper())):
            return True
    length = sum(map(len, parts))
    if length < 20:
        return False
    rate = sum(map(_changes, parts)) / length
    capitals = sum(map(str.isupper, word)) / length
    return (rate >= 0.18 and any(map(str.isdigit, word))) or (rate >= 0.13 and 0.28 <= capitals <= 0.72)


def _changes(part: str) -> int:
    """How often a capital or a digit begins or a digit ends; a capital that begins a word is one, not two."""
    kinds = ["digit" if c.isdigit() else "upper" if c.isupper() else "lower" for c in part]
    return sum(1 for pair in pairwise(kinds) if pair[0] != pair[1] and pair != ("upper", "lower"))
