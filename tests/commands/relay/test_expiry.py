"""Certificates of the relay that have expired, are not valid yet, or will expire soon."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor

from tests.support.relay import check, get, running_relay, status, wait_for
from twisted_netsock import SocketOptions, client_endpoint, server_endpoint
from twisted_netsock.commands._common.expiry import expiry_problems, expiry_values
from twisted_netsock.commands.relay.supervisor import _added

pytestmark = pytest.mark.once

LONG = ("--expect-expiry", "365d")


@pytest.fixture(params=["expired", "not yet valid", "soon"])
def case(request, authority, tmp_path):
    """A file, whether it is refused, and what is said of it."""
    faults, said = {
        "expired": ({"expired": True}, "expired on"),
        "not yet valid": ({"not_yet_valid": True}, "is not valid before"),
        "soon": ({}, "expires on"),
    }[request.param]
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("localhost", **faults).pem)
    return path, request.param != "soon", said


def test_a_check_refuses_or_warns(case):
    path, wrong, said = case
    listen = f"netsock-tls:0:node=127.0.0.1:certificates={path}"
    done = check("--listen", listen, "--to", "netsock:127.0.0.1:9", *LONG)
    assert done.code == int(wrong)
    (line,) = done.errors.splitlines()
    kind = "Error" if wrong else "Warning"
    assert re.fullmatch(
        rf"{kind}: --listen {listen}: certificates: {path} {said} \d{{4}}-\d\d-\d\d.*", line
    )


def test_so_it_does_of_what_a_backend_is_shown(case, authority, tmp_path):
    path, wrong, said = case
    to = f"netsock-tls:localhost:9:certificates={path}"
    done = check("--listen", "netsock:0:node=127.0.0.1", "--to", to, *LONG)
    assert done.code == int(wrong)
    assert f"--to {to}: certificates: {path} {said}" in done.errors


@pytest.mark.parametrize(("expected", "warned"), [("365d", True), ("1m", False)])
def test_how_soon_is_the_users_choice(authority, tmp_path, expected, warned):
    path = tmp_path / "server.pem"
    path.write_bytes(authority.issue("localhost").pem)
    done = check(
        "--listen", f"netsock-tls:0:node=127.0.0.1:certificates={path}",
        "--to", "netsock:127.0.0.1:9", "--expect-expiry", expected,
    )  # fmt: skip
    assert done.code == 0
    assert ("expires on" in done.errors) is warned


@pytest.mark.parametrize("workers", [1, 2])
def test_a_relay_warns_at_its_start_and_shows_when(case, workers, tmp_path):
    path, _, said = case
    listen = f"netsock-tls:0:node=127.0.0.1:certificates={path}"
    with running_relay(
        tmp_path, "--listen", listen, "--to", "netsock:127.0.0.1:9",
        "--status", "netsock:0:node=127.0.0.1", "--workers", str(workers), *LONG,
    ) as (child, _):  # fmt: skip
        child.wait_for_line(said)
        port = int(
            wait_for(lambda: re.search(r"status on .*?(\d+)\)?$", child.output, re.MULTILINE))[1]
        )
        (shown,) = wait_for(lambda: status(port)["certificates"])
        assert shown["source"] == str(path)
        assert shown["field"] == "certificates"
        assert datetime.fromisoformat(shown["not_after"])
        code, metrics = get(port, "/metrics")
        if code == 200:
            assert "netsock_relay_certificate_expiry_timestamp_seconds{" in metrics
        assert child.output.count(said) == 1


def test_of_trusted_certificates_the_next_that_expires_counts(authority):
    endpoint = client_endpoint(reactor, "localhost", 9, authority.client_options())
    (shown,) = expiry_values([endpoint])
    assert shown["field"] == "trusted_certificates"
    assert shown["source"] == "1 given as bytes or objects"
    assert shown["days_left"] >= 0
    assert list(expiry_problems(endpoint, 0)) == []


def test_what_speaks_no_tls_has_none():
    plain = server_endpoint(reactor, "127.0.0.1", 0, SocketOptions())
    assert expiry_values([plain]) == []
    assert _added({}, {"certificates": []}) == {"certificates": []}


@pytest.mark.parametrize("days", [-1, 3])
def test_revocation_lists_expire_too(days, authority):
    now = datetime.now(UTC).replace(microsecond=0)
    due = now + timedelta(days=days)
    name = authority.certificate.subject
    builder = x509.CertificateRevocationListBuilder(name, now - timedelta(days=9), due)
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    lists = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    client = client_endpoint(
        reactor, "localhost", 443, authority.client_options(revocation_lists=lists)
    )
    record = authority.server_options(
        "localhost", trusted_certificates=authority.certificate, revocation_lists=lists
    )
    for endpoint in client, server_endpoint(reactor, "localhost", 0, record):
        shown = [each for each in expiry_values([endpoint]) if each["field"] == "revocation_lists"]
        assert [each["not_after"] for each in shown] == [due.isoformat()]
        # Most lists are of days: only those that are over are told of.
        said = [text for _, text in expiry_problems(endpoint, 14 * 86400) if "revocation" in text]
        assert said == (
            []
            if days > 0
            else [f"revocation_lists: {shown[0]['source']} expired on {due:%Y-%m-%d}"]
        )
