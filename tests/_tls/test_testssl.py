"""What a second scanner finds in our TLS servers, which it looks at for a minute: nothing weak."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.loopback import LOOPBACK
from tests.support.processes import CertificateFiles, needs, run, started, write_certificates
from twisted_netsock.testing import CertificateAuthority

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not os.environ.get("NETSOCK_TESTSSL"), reason="run by nox -s testssl"),
    pytest.mark.timeout(900),
    needs("testssl"),
]

SERVERS = {
    "socket": """
async def serve(port, options):
    listener = await make_server_tls_socket("127.0.0.1", 0, options)
    print("port", listener.getsockname().port, flush=True)
    await listener.serve(lambda connection: connection.recv(1))
""",
    "endpoint": """
async def serve(port, options):
    endpoint = server_endpoint(reactor, "127.0.0.1", 0, options)
    port = await endpoint.listen(Factory.forProtocol(Protocol))
    print("port", port.getHost().port, flush=True)
    await Deferred()
""",
}
PROGRAM = """
import sys

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import react

from twisted_netsock import *

{serve}

def main(reactor_, path):
    global reactor
    reactor = reactor_
    return Deferred.fromCoroutine(serve(0, ServerTLSSocketOptions(certificates=path)))

react(main, sys.argv[1:])
"""

LOOKED_AT = ("-p", "-s", "-f", "-P", "-S", "-U")
"""Versions, suites, forward secrecy, preferences, sessions with certificates, weaknesses."""

OF_THE_CERTIFICATE = {"cert_expirationStatus", "cert_notAfter", "cert_revocation"}
"""That of the tests lives for a month, and no authority would revoke it."""

WEAK = {"LOW", "MEDIUM", "HIGH", "CRITICAL", "FATAL"}
"""What could not be looked at, a warning, is no weakness; it must not be what is expected."""

EXPECTED = {
    "SSLv2": "not offered",
    "SSLv3": "not offered",
    "TLS1": "not offered",
    "TLS1_1": "not offered",
    "TLS1_2": "offered",
    "TLS1_3": "offered",
    "cipherlist_AVERAGE": "not offered",
    "cipherlist_STRONG": "offered",
    "PFS": "offered",
    "cipher_order": "server",
    "sessionresumption_ID": "not supported",
    "TLS_session_ticket": "valid for 7200 seconds",
    "secure_renego": "supported",
    "secure_client_renego": "not vulnerable",
    "CRIME_TLS": "not vulnerable",
    "heartbleed": "not vulnerable",
    "CCS": "not vulnerable",
    "fallback_SCSV": "no protocol below TLS 1.2 offered",
    "LUCKY13": "not vulnerable",
    "RC4": "not vulnerable",
}
"""How some of the findings begin, so that a scan which found nothing does not pass."""


@pytest.fixture
def files(tmp_path: Path, authority: CertificateAuthority) -> CertificateFiles:
    return write_certificates(tmp_path, authority)


@pytest.fixture(params=SERVERS)
def port(request: pytest.FixtureRequest, tmp_path: Path, files: CertificateFiles) -> Iterator[int]:
    """A server of ours in a process of its own."""
    program = PROGRAM.format(serve=SERVERS[request.param])
    output = tmp_path / "server.log"
    with started(sys.executable, "-c", program, files.server, output=output) as child:
        yield int(child.wait_for_line(r"port (\d+)")[1])


def test_nothing_is_weak(port: int, tmp_path: Path, files: CertificateFiles) -> None:
    report = tmp_path / "report.json"
    done = run(
        "testssl", "--warnings", "off", "--color", "0", "--quiet", "--nodns", "none",
        "--add-ca", files.authority, "--jsonfile", report, *LOOKED_AT, f"{LOOPBACK}:{port}",
        seconds=600,
    )  # fmt: skip
    assert report.exists(), done.output + done.errors
    findings = json.loads(report.read_text())
    weak = [
        (each["id"], each["severity"], each["finding"])
        for each in findings
        if each["severity"] in WEAK and each["id"] not in OF_THE_CERTIFICATE
    ]
    assert not weak
    found = {each["id"]: each["finding"] for each in findings}
    assert not {
        name: found.get(name)
        for name, begin in EXPECTED.items()
        if not found.get(name, "").startswith(begin)
    }
    assert found["cert_chain_of_trust"].startswith("passed")
