"""Endpoint strings that are wrong: one line that says which key and value, and what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString

from twisted_netsock import SocketOptions, client_endpoint
from twisted_netsock._endpoints import string_keys
from twisted_netsock._endpoints import strings as string_endpoints

pytestmark = pytest.mark.once

C, S = clientFromString, serverFromString
MANY = "9" * 5000
CUT = "9" * 80
KNOWN = (*string_keys.keys_of(SocketOptions), "node", "service", string_keys.PROXY_PASSWORD_FILE)
TLS = "netsock-tls:example.com:443"

# What no text file can hold, or should: the endpoint function, the string, and the line.
SPECIAL = [
    (S, "netsock:80:node=a\x00b", "node='a\\x00b' must be a host name or an address"),
    (
        C,
        f"netsock:example.com:80:connectionTimeout={MANY}s",
        f"connectionTimeout='{CUT}'… must be more than 0 and at most 365 days",
    ),
    (C, f"netsock:example.com:80:backlog={MANY}", f"backlog='{CUT}'… must be an integer"),
    (
        C,
        f"netsock:example.com:80:localAddress=127.0.0.1\\:{MANY}",
        f"localAddress=('127.0.0.1:{MANY}', 0) must be a numeric host: nobody looks it up",
    ),
    (C, f"netsock:example.com:80:SO_RCVBUF={MANY}", f"SO_RCVBUF='{CUT}'… must be an integer"),
    (
        C,
        "netsock-tls:example.com:443:privateKeyPasswordFile=a\x00b",
        "privateKeyPasswordFile='a\\x00b' cannot be read: embedded null byte",
    ),
    (
        C,
        "netsock:example.com:80:a\nb=c",
        "unknown key 'a\\nb'='c': known are {known}",
    ),
]


def written() -> list[tuple[Any, str, str]]:
    """Return the table of ``wrong_strings.txt``."""
    lines = Path(__file__).with_name("wrong_strings.txt").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return [
        ({"client": C, "server": S}[first.split(" ", 1)[0]], first.split(" ", 1)[1], line.strip())
        for first, line in pairs
    ]


BAD = [*written(), *SPECIAL]


@pytest.mark.parametrize(
    ("parse", "string", "line"),
    BAD,
    ids=[f"{parse.__name__[:6]}-{string[:50]!a}" for parse, string, _ in BAD],
)
def test_a_wrong_string_is_one_line_that_helps(parse, string, line):
    with pytest.raises(ValueError) as caught:
        parse(reactor, string)
    known = (
        (*KNOWN, string_keys.SYSTEMD, string_keys.DESCRIPTOR)
        if parse is serverFromString
        else KNOWN
    )
    assert str(caught.value) == line.replace("{known}", ", ".join(sorted(known)))
    assert "\n" not in line


def test_a_file_of_something_else_is_named():
    with pytest.raises(
        ValueError, match="trustedCertificates='/etc/passwd' is neither PEM"
    ) as caught:
        clientFromString(reactor, f"{TLS}:trustedCertificates=/etc/passwd")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["privateKeyPassword", "PrivateKeyPassword", "password"])
def test_a_password_in_a_string_is_refused_and_not_repeated(key):
    with pytest.raises(ValueError, match=key) as caught:
        clientFromString(reactor, f"{TLS}:{key}=hunter2")
    assert "hunter2" not in str(caught.value)


def test_reload_every_nothing_names_the_key(tmp_path, authority):
    path = tmp_path / "both.pem"
    path.write_bytes(authority.issue("localhost").pem)
    with pytest.raises(ValueError, match="reloadEvery"):
        serverFromString(reactor, f"netsock-tls:443:certificates={path}:reloadEvery=0s")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n", "malformed"),
        (b"-----BEGIN NOTHING-----\n", "holds no certificate"),
        (b"\x30\x03\x02\x01\x00", "neither PEM"),
        (b"\xff" * 100, "neither PEM"),
    ],
    ids=["malformed", "empty PEM", "other DER", "noise"],
)
def test_a_bad_file_is_named_on_one_line(tmp_path, content, message):
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        clientFromString(reactor, f"{TLS}:trustedCertificates={path}")
    assert f"trustedCertificates={str(path)!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("the wrong key", None, "does not match"),
        ("no key", b"nonsense", "holds no private key"),
        (
            "a malformed key",
            b"-----BEGIN PRIVATE KEY-----\nbm9uc2Vuc2U=\n-----END PRIVATE KEY-----\n",
            "holds no private key that can be used",
        ),
    ],
)
def test_a_bad_key_is_reported_on_one_line_without_its_content(
    tmp_path, authority, key, content, message
):
    del key
    certificate, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(authority.issue("localhost").certificate_pem)
    private.write_bytes(content or authority.issue("localhost").private_key_pem)
    with pytest.raises(ValueError, match=message) as caught:
        serverFromString(
            reactor, f"netsock-tls:443:certificates={certificate}:privateKey={private}"
        )
    assert "privateKey" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)


def test_the_escaped_form_that_an_error_shows_works():
    with pytest.raises(ValueError) as caught:
        clientFromString(reactor, "netsock:node=[fe80::1]:service=80")
    advice = str(caught.value).split("such as ")[1]
    assert advice == f"node={quoteStringArgument('fe80::1')}"
    assert repr(clientFromString(reactor, f"netsock:{advice}:service=80")) == repr(
        client_endpoint(reactor, "fe80::1", "80", SocketOptions())
    )


@pytest.mark.parametrize(
    ("parse", "text", "hint"),
    [
        (C, "localhost:8007", "write netsock:localhost:8007, or"),
        (C, "[::1]:8007", "write netsock:[::1]:8007, or"),
        (C, "localhost:8007:readTimeout=1s", "write netsock:localhost:8007:readTimeout=1s, or"),
        (C, "8007", "write netsock:localhost:8007, or"),
        (C, "8007:readTimeout=1s", "write netsock:localhost:8007:readTimeout=1s, or"),
        (C, "10.0.0.1", "an endpoint begins with its type, as in netsock:HOST:PORT"),
        (C, "http://localhost:8007/path", "write netsock:localhost:8007, or"),
        (C, "https://example.com", "write netsock:example.com:443, or"),
        (C, "https://[::1]/", "write netsock:[::1]:443, or"),
        (S, ":8007", "write netsock:8007, or"),
        (S, "*:8007", "write netsock:8007, or"),
        (S, "http://127.0.0.1:8007", "write netsock:8007:node=127.0.0.1, or"),
        (C, "/run/app.sock", "write netsock:/run/app.sock:aiFamily=unix, or"),
        (S, "8007", "write netsock:8007, or"),
        (S, "https", "write netsock:https, or"),
        (S, "127.0.0.1:8007", "write netsock:8007:node=127.0.0.1, or"),
        (S, "[::1]:8007", r"write netsock:8007:node=\:\:1, or"),
        (S, "/run/app.sock", "write netsock:/run/app.sock:aiFamily=unix, or"),
        (C, "netsok-tls:example.com:443", "did you mean netsock-tls:?"),
        (S, "netsok:80", "did you mean netsock:?"),
        (C, "example.com", "an endpoint begins with its type, as in netsock:HOST:PORT"),
        (S, "two words", "an endpoint begins with its type, as in netsock:PORT"),
    ],
)
def test_a_string_without_a_type_gets_the_one_that_was_meant(parse, text, hint):
    with pytest.raises(ValueError, match=r"nknown endpoint type|node") as caught:
        string_endpoints.endpoint_from(parse, reactor, text)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_of_a_known_type_is_left_alone():
    with pytest.raises(ValueError, match=r"^service is missing: write netsock:NODE:SERVICE"):
        string_endpoints.endpoint_from(C, reactor, "netsock:example.com")


def test_a_misspelt_type_of_an_inner_endpoint_is_named_without_the_rest():
    with pytest.raises(ValueError, match="did you mean netsock:") as caught:
        clientFromString(reactor, r"netsock-tls:a.example:endpoint=netsok\:secret\:1")
    assert "secret" not in str(caught.value)
