"""Redaction: planted secrets never survive, what helps stays."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.core.redact import (
    MAX_ARGUMENT,
    MAX_ARGUMENTS,
    REDACTED,
    redact_command,
    redact_document,
    redact_environment,
    redact_text,
)

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=40).map(
    lambda text: f"Zq{text}"
)
words = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=4, max_size=30).map(
    lambda text: f"zq{text}"
)
secret_names = st.sampled_from(
    [
        "password",
        "db-password",
        "API_KEY",
        "apiKey",
        "MYAPIKEY",
        "awsaccesskey",
        "auth-token",
        "client_secret",
        "passwd",
        "proxyauth",
    ]
)


@pytest.mark.parametrize(
    "argv",
    [
        (
            "python3.11",
            "-m",
            "gunicorn",
            "-w",
            "4",
            "-k",
            "uvicorn.workers.UvicornWorker",
            "app.main:create_app",
        ),
        (
            "/opt/app/v1.2.3/bin/python",
            "/srv/proxy/run_proxy_server_with_v2_config.py",
            "--port=8080",
            "-p",
            "80",
        ),
        ("mitmdump", "--mode", "reverse:http://localhost:8000", "--set", "stream_large_bodies=1m"),
        ("x", "--access-logfile", "/var/log/my-app/access_2024-01-01.log", "--keyfile", "/etc/tls/k.pem"),
        (
            "x",
            "--token-file",
            "/run/t",
            "--plugins",
            "proxy.plugin.ModifyPostDataPlugin,a.b",
            "https://h/p@2",
        ),
        (
            "x",
            "-u",
            "www-data",
            "OAuth2ClientCredentialsGrantHandler",
            "HTTPServerRequestHandlerIO",
            "LONG_NAME_OF_A_CONSTANT_IN_CAPITALS",
        ),
    ],
)
def test_plain_words_paths_and_names_stay(argv: tuple[str, ...]) -> None:
    """Real command lines without a secret are not touched."""
    assert redact_command(argv) == argv


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (("x", "--password", "hunter2"), ("x", "--password", REDACTED)),
        (("x", "--token=hunter2"), ("x", f"--token={REDACTED}")),
        (("x", "-e", "DB_PASSWORD=a b&c"), ("x", "-e", f"DB_PASSWORD={REDACTED}")),
        (("x", "-H", "Authorization: Token abc"), ("x", "-H", f"Authorization: {REDACTED}")),
        (("x", "-u", "root:pw"), ("x", "-u", REDACTED)),
        (("x", "postgres://u:p/w@h/db"), ("x", f"postgres://{REDACTED}@h/db")),
        (("x", "https://h/p?token=abc&x=1"), ("x", f"https://h/p?token={REDACTED}&x=1")),
        (("x", '{"password": "hun ter2", "a": 1}'), ("x", f'{{"password": "{REDACTED}", "a": 1}}')),
        (("x", "--token", "--password", "pw"), ("x", "--token", REDACTED, REDACTED)),
        (("x", "AKIAIOSFODNN7EXAMPLE"), ("x", REDACTED)),
        (("x", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), ("x", REDACTED)),
        (("x", "/nix/8jzfhgdm2pn4kmxqk9kmsvlz1r8l2yqz/bin"), ("x", f"/nix/{REDACTED}/bin")),
        (("x", "/aB/cD1/eF2/gH3/iJ4/kL5/mN6/oP7/q"), ("x", REDACTED)),
        (("x", "cfg=a=b=c"), ("x", "cfg=a=b=c")),
        (("nginx: http://u:p@h",), (f"nginx: http://{REDACTED}@h",)),
    ],
)
def test_secrets_of_a_command_line(argv: tuple[str, ...], shown: tuple[str, ...]) -> None:
    """By name and by looks; the names stay."""
    assert redact_command(argv) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot reach redis://:pw@h:6379/0", f"cannot reach redis://{REDACTED}@h:6379/0"),
        ("two: a://u:p@h,b://v:q@i", f"two: a://{REDACTED}@i"),
        ("token https://ghp@github.com/x", f"token https://{REDACTED}@github.com/x"),
        ("sent Bearer abc.def", f"sent Bearer {REDACTED}"),
        (f"jwt={JWT}.", f"jwt={REDACTED}"),
        (f"got {JWT} here", f"got {REDACTED} here"),
        ("Authorization: Token abc def\nnext", f"Authorization: {REDACTED}\nnext"),
        ("Cookie: a=b; c=d", f"Cookie: {REDACTED}"),
        ("connect(password='a\\'b', user='x')", f"connect(password='{REDACTED}', user='x')"),
        ("mode=x=password=y", f"mode=x=password={REDACTED}"),
        ("key glpat-abcdefgh12345", f"key {REDACTED}"),
        ("password=", "password="),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----!", f"{REDACTED}!"),
        ("-----BEGIN PRIVATE KEY-----\nabc", REDACTED),
        ('File "/srv/a.py", line 3, in f: ratio 1:2', 'File "/srv/a.py", line 3, in f: ratio 1:2'),
    ],
)
def test_secrets_of_free_text(text: str, shown: str) -> None:
    """Log lines, headers, code."""
    assert redact_text(text) == shown


@given(secret_names, secrets, st.sampled_from(["--{0} {1}", "--{0}={1}", "{0}={1}", "-D{0}={1}", "{0}: {1}"]))
def test_a_secret_after_its_name_never_survives_on_a_command_line(name: str, secret: str, form: str) -> None:
    """Whatever printable characters it is made of, first dashes and quotes included."""
    option, _, rest = form.partition(" ") if form.startswith("--{0} ") else (form, "", "")
    argv = ["x", option.format(name, secret), *([rest.format(name, secret)] if rest else []), "tail"]
    shown = redact_command(argv)
    assert secret not in " ".join(shown)
    assert name in " ".join(shown)
    assert shown[-1] == "tail"


@given(
    words, st.sampled_from(["a://u:{}@h/x", "{{'password': '{}'}}", "Bearer {}", "x?api_key={}&y", "pwd={}"])
)
def test_a_secret_word_never_survives_in_text(secret: str, form: str) -> None:
    """The forms in which secrets come into messages."""
    assert secret not in redact_text(f"before {form.format(secret)} after")


@given(secrets)
def test_the_password_of_a_url_never_survives(secret: str) -> None:
    """Any characters but those that end a URL in text."""
    secret = "".join(c for c in secret if c not in "\"'<>")
    assert secret not in redact_text(f"to postgres://user:{secret}@host/db now")


@given(st.integers(0, 2**64))
def test_a_long_random_word_never_survives(seed: int) -> None:
    """Hex, base64, letters with digits, alone and behind a harmless name, if three of them are digits.

    Random letters alone can look like words; about one such word in 100 is not known by its looks.
    """
    randomness = random.Random(seed)
    content = randomness.randbytes(32)
    digits = "".join(randomness.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=40))
    candidates = (content.hex(), base64.b64encode(content).decode(), digits)
    for secret in (word for word in candidates if sum(map(str.isdigit, word)) >= 3):
        shown = " ".join(redact_command(["x", secret, f"seed={secret}", f"--opt={secret}"]))
        assert secret not in shown


def test_a_command_line_is_bounded() -> None:
    """In words and in the length of each."""
    shown = redact_command(["x"] * (MAX_ARGUMENTS + 5))
    assert (len(shown), shown[-1]) == (MAX_ARGUMENTS + 1, "... 5 more")
    assert len(redact_command(["x", "a b " * MAX_ARGUMENT])[1]) == MAX_ARGUMENT + 3


@pytest.mark.parametrize(
    "text", ["a" * 10**5, "a:" * 50_000, "://a:" * 20_000, "eyJ" * 30_000, 'a="' * 30_000, "sk-" * 30_000]
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    """100 KB of what a careless pattern would go through again and again; the test's time limit is the judge."""
    assert len(redact_text(text * 5)) <= 5 * len(text) + 10**6


def test_only_harmless_variables_keep_their_value() -> None:
    """All names stay; values by a short list, and not if they look like a secret."""
    shown = redact_environment(
        {
            "PATH": "/bin:/usr/bin",
            "LC_ALL": "C",
            "PYTHONPATH": "/srv/app",
            "PYTHONKEYRING_PASSWORD": "p",
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "KUBERNETES_SERVICE_TOKEN": "t",
            "HOSTNAME": "8f3c2a9d1b7e4f60a5c8d2e9b1f7a3c4",
            "PYTHONPROXY": "http://u:p@h",
            "DATABASE_URL": "x",
            "FOO": "",
        }
    )
    assert shown == {
        "PATH": "/bin:/usr/bin",
        "LC_ALL": "C",
        "PYTHONPATH": "/srv/app",
        "PYTHONKEYRING_PASSWORD": REDACTED,
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_TOKEN": REDACTED,
        "HOSTNAME": REDACTED,
        "PYTHONPROXY": f"http://{REDACTED}@h",
        "DATABASE_URL": REDACTED,
        "FOO": REDACTED,
    }


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=8))
def test_no_environment_breaks_redaction_and_every_name_is_kept(environment: dict[str, str]) -> None:
    """Hostile names and values."""
    assert list(redact_environment(environment)) == list(environment)


def test_a_document_loses_what_stands_under_secret_names() -> None:
    """At any depth; numbers, names and plain text stay."""
    document = {
        "filters": [{"api_key": "hunter2", "limit": 3, "url": "http://u:hunter2@h/"}],
        "headers": {"Authorization": "Bearer hunter2", "X-Plain": "words"},
        "password": None,
    }
    shown = redact_document(document)
    assert "hunter2" not in repr(shown)
    assert shown["filters"][0]["limit"] == 3
    assert shown["headers"]["X-Plain"] == "words"
    assert list(shown) == list(document)
