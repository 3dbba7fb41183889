"""``netsock probe`` as an operator runs it: a process, before servers of every kind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests._certificates import test_paths as paths
from tests.support.loopback import LONGEST, LOOPBACK, reset
from tests.support.processes import (
    NETSOCK,
    TWIST,
    Handler,
    Ran,
    drain,
    find,
    free_port,
    in_terminal,
    mute_after,
    needs,
    netsock,
    one_line,
    run,
    serving,
    started,
    tls,
    write_authority,
)
from twisted_netsock.__main__ import main
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.once


@pytest.fixture
def ca(tmp_path: Path, authority: CertificateAuthority) -> Path:
    return write_authority(tmp_path, authority)


@pytest.fixture
def good(tmp_path: Path, authority: CertificateAuthority) -> Any:
    return tls(authority.issue("localhost").pem, tmp_path)


def probe(port: int, *arguments: str | Path) -> Ran:
    return netsock("probe", f"localhost:{port}", "-4", *arguments)


def found_by(done: Ran) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON report, and that of its one address."""
    report = json.loads(done.output)
    assert report["exit_status"] == done.code
    assert done.errors == ""
    [address] = report["addresses"]
    return report, address


# Servers that are good


def test_a_good_server_is_verified(good, ca):
    with serving(good) as port:
        done = probe(port, "--ca", ca)
    assert (done.code, done.errors) == (0, "")
    assert f"127.0.0.1:{port}  verified, 29 days left\n" in done.output
    assert done.output.endswith("\nverified: 1 of 1\n")
    for part in ("TLSv1.3", "CN=localhost", "CN=throw-away authority", "connect ", "sha256//"):
        assert part in done.output
    assert "\x1b" not in done.output
    assert done.output.count("CN=localhost") == 1
    assert len(done.output.splitlines()) < 24
    assert max(map(len, done.output.splitlines())) <= 80


def test_the_whole_chain_is_reported_on_demand_each_certificate_once(good, ca):
    with serving(good) as port:
        done = probe(port, "--ca", ca, "-v")
    assert "  chain       0 CN=localhost\n                  by CN=throw-away" in done.output
    assert "              1 CN=throw-away authority (not sent)\n" in done.output
    assert done.output.count("CN=localhost\n") == 2


def test_a_long_certificate_fits_the_terminal_and_is_whole_on_demand(tmp_path, authority, ca):
    names = ["localhost", *(f"{'n' * 40}{number}.example" for number in range(30))]
    with serving(tls(authority.issue(*names).pem, tmp_path)) as port:
        short, whole = probe(port, "--ca", ca), probe(port, "--ca", ca, "-v")
    assert len(short.output.splitlines()) < 24
    assert max(map(len, short.output.splitlines())) <= 80
    assert re.search(r"^  names       localhost.* and \d\d more$", short.output, re.MULTILINE)
    assert " and 19 more\n" in whole.output


def test_a_pipe_of_authorities_is_read_once_for_every_address(good, ca):
    reading, writing = os.pipe()
    os.write(writing, ca.read_bytes())
    os.close(writing)
    try:
        with serving(good) as port:
            hosts = [f"localhost:{port}"] * 3
            path = f"/dev/fd/{reading}"
            done = netsock("probe", *hosts, "-4", "--ca", path, pass_fds=(reading,))
    finally:
        os.close(reading)
    assert done.code == 0, done.output


@pytest.fixture
def several(good, tmp_path):
    """Yield a good server's host and port, one that refuses, and a list of both."""
    with serving(good) as port:
        hosts = [f"127.0.0.1:{free_port()}", f"localhost:{port}"]
        listed = tmp_path / "hosts"
        listed.write_text(f"# two\n{hosts[0]}  # refuses\n\n{hosts[1]}\n")
        yield *hosts, listed


@pytest.mark.parametrize("way", ["arguments", "file", "input", "both"])
def test_several_hosts_are_a_table_and_the_worst_decides(way, several, ca):
    refusing, good, listed = several
    arguments = {
        "arguments": [refusing, good],
        "file": ["--hosts", listed],
        "input": ["-"],
        "both": [refusing, "--hosts", "-"],
    }[way]
    given = listed.read_bytes() if way == "input" else good.encode() if way == "both" else b""
    done = netsock("probe", *arguments, "-4", "--ca", ca, given=given)
    assert (done.code, done.errors) == (4, "")
    head, first, second, empty, verdict = done.output.splitlines()
    assert head.split() == ["host", "verdict", "days", "version", "group", "what", "is", "wrong"]
    assert first.split()[:2] == [refusing, "UNREACHABLE"]
    assert first.endswith("connection refused")
    assert second.split()[:4] == [good, "verified", "29", "TLSv1.3"]
    assert (empty, verdict) == ("", "UNREACHABLE: 1 of 2 hosts are verified")


def test_several_hosts_are_lines_of_json(several, ca):
    refusing, good, listed = several
    done = netsock("probe", "--hosts", listed, "-4", "--ca", ca, "--json")
    assert (done.code, done.errors) == (4, "")
    reports = [json.loads(line) for line in done.output.splitlines()]
    assert [f"{each['host']}:{each['service']}" for each in reports] == [refusing, good]
    assert [each["exit_status"] for each in reports] == [4, 0]


def test_each_of_several_is_reported_on_demand(several, ca):
    _, _, listed = several
    done = netsock("probe", "--hosts", listed, "-4", "--ca", ca, "-v")
    assert done.output.count("looked up in") == 2
    assert done.output.endswith("\nUNREACHABLE: 1 of 2 hosts are verified\n")


@needs("setsid")
def test_a_terminal_shows_how_far_several_hosts_are(several, ca):
    _, _, listed = several
    with in_terminal("probe", "--hosts", listed, "-4", "--ca", ca) as terminal:
        assert terminal.ends() == 4
    assert "\r0 of 2 hosts\r" in terminal.shown
    assert "\r2 of 2 hosts\r\x1b[K" in terminal.shown
    assert "UNREACHABLE" in terminal.shown.partition("\x1b[K")[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "give one HOST"),
        (b"# none\n", "give one HOST"),
        (b"good\nbad host\n", ", line 2: bad host: "),
        (b"https://a.example/\xff\n", ", line 1: "),
        (b"a.example\n" * 200_000, "more than 1048576 bytes"),
        (None, "No such file or directory"),
    ],
)
def test_a_list_of_hosts_that_is_wrong_is_status_2(content, said, tmp_path, capfd):
    path = tmp_path / "hosts"
    if content is not None:
        path.write_bytes(content)
    assert main(["probe", "--hosts", str(path)]) == 2
    output, errors = capfd.readouterr()
    assert (output, len(errors.splitlines())) == ("", 1)
    assert said in errors


def test_post_quantum_key_exchange_can_be_expected(tmp_path, authority, ca):
    old = tls(
        authority.issue("localhost").pem,
        tmp_path,
        maximum_version=ssl.TLSVersion.TLSv1_2,
    )
    with serving(old) as port:
        report, address = found_by(probe(port, "--ca", ca, "--expect-pq", "--json"))
        text = probe(port, "--ca", ca, "--expect-pq").output
        assert probe(port, "--ca", ca).code == 0
    assert (report["exit_status"], address["outcome"], address["verified"]) == (
        10, "classical", True
    )  # fmt: skip
    assert "\nCLASSICAL: " in text
    assert text.endswith(" is not post-quantum\n")


CERTIFICATE = {
    "subject": str, "issuer": str, "names": list, "serial": str, "not_before": str,
    "not_after": str, "days_left": int, "key": str, "signature": str, "authority": bool,
    "sha256": str, "pin_sha256": str,
}  # fmt: skip
ADDRESS = {
    "address": str, "port": int, "outcome": str, "reached": bool, "verified": bool,
    "counts": bool, "stage": (str, type(None)), "error": (dict, type(None)), "seconds": dict,
    "tls": (dict, type(None)), "problems": list, "client_certificate_authorities": list,
    "chain_sent": list, "chain_verified": list, "expiring": list, "plain": (str, type(None)),
}  # fmt: skip
REPORT = {
    "schema": int, "host": str, "service": (int, str), "verified_name": str,
    "starttls": (str, type(None)), "outcome": str, "exit_status": int,
    "look_up_seconds": float, "error": (dict, type(None)), "addresses": list,
}  # fmt: skip


def has_the_form(value: dict[str, Any], form: dict[str, Any]) -> None:
    assert value.keys() == form.keys()
    for key, kind in form.items():
        assert isinstance(value[key], kind), key


def test_the_json_has_the_documented_form(good, ca, authority):
    """Programs rely on it: a key that goes or changes raises the number of the schema."""
    with serving(good) as port:
        report, address = found_by(probe(port, "--ca", ca, "--json"))
    has_the_form(report, REPORT)
    has_the_form(address, ADDRESS)
    for certificate in (*address["chain_sent"], *address["chain_verified"]):
        has_the_form(certificate, CERTIFICATE)
    assert (report["schema"], report["outcome"], report["exit_status"]) == (1, "ok", 0)
    assert address["tls"].keys() == {"version", "cipher", "group", "alpn"}
    assert address["tls"]["version"] == "TLSv1.3"
    assert address["seconds"].keys() == {"connect", "starttls", "handshake"}
    assert address["seconds"]["starttls"] is None
    assert address["seconds"]["handshake"] > 0
    assert [each["subject"] for each in address["chain_sent"]] == ["CN=localhost"]
    assert [each["subject"] for each in address["chain_verified"]] == [
        "CN=localhost",
        "CN=throw-away authority",
    ]


def test_the_certificates_themselves_are_printed_on_demand(good, ca):
    with serving(good) as port:
        report = json.loads(probe(port, "--ca", ca, "--json", "--pem").output)
        text = probe(port, "--ca", ca, "--pem").output
    pem = report["addresses"][0]["chain_sent"][0]["pem"]
    assert pem.startswith("-----BEGIN CERTIFICATE-----\n")
    assert pem in text


def test_tls_1_2_and_alpn_are_reported(tmp_path, authority, ca):
    old = tls(
        authority.issue("localhost").pem,
        tmp_path,
        maximum_version=ssl.TLSVersion.TLSv1_2,
        alpn=["http/1.1"],
    )
    with serving(old) as port:
        _, address = found_by(probe(port, "--ca", ca, "--json", "--alpn", "h2,http/1.1"))
        refused = probe(port, "--ca", ca, "--min-tls", "1.3")
    assert address["tls"]["version"] == "TLSv1.2"
    assert address["tls"]["alpn"] == "http/1.1"
    assert refused.code == 5
    assert "TLS FAILED: alert from the peer: protocol version" in refused.output


@pytest.mark.parametrize("profile", [(), ("--strict",)])
def test_another_path_than_openssls_is_found_as_clients_find_it(tmp_path, profile):
    """The first of two intermediates of one name is no authority of servers."""
    pem = b"".join(
        each.public_bytes(serialization.Encoding.PEM)
        for each in (paths.leaf(paths.GOOD, "localhost").certificate, paths.WRONG.certificate)
    )
    key = paths.KEY.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    root = tmp_path / "root.pem"
    root.write_bytes(paths.ROOT.certificate.public_bytes(serialization.Encoding.PEM))
    good = paths.GOOD.certificate.public_bytes(serialization.Encoding.PEM)
    for sent, code in ((pem + good, 0), (pem, 6)):
        with serving(tls(sent + key, tmp_path)) as port:
            assert probe(port, "--ca", root, *profile).code == code
            assert probe(port, "--ca", root, "--sni", "other.example", *profile).code == 6


def test_the_strict_profile_refuses_what_the_default_takes(tmp_path, authority, ca):
    """A host name with an underscore, for example."""
    odd = tls(authority.issue("localhost", "a_b.example").pem, tmp_path)
    with serving(odd) as port:
        assert probe(port, "--ca", ca).code == 0
        refused = probe(port, "--ca", ca, "--strict")
    assert refused.code == 6
    assert "the strict profile refuses it: a host name" in refused.output


def test_another_identity_is_verified_than_the_host(tmp_path, authority, ca):
    web = tls(authority.issue("spiffe://example.org/web").pem, tmp_path)
    with serving(web) as port:
        assert probe(port, "--ca", ca, "--identity", "spiffe://example.org/web").code == 0
        refused = probe(port, "--ca", ca, "--identity", "spiffe://example.org/db")
        assert refused.code == 6
        assert "not for 'spiffe://example.org/db'" in refused.output
        assert probe(port, "--ca", ca, "--identity", "*").code == 2


def test_another_name_is_asked_for_and_verified(tmp_path, authority, ca):
    names: list[str | None] = []
    other = tls(
        authority.issue("other.example").pem,
        tmp_path,
        sni_callback=lambda _sock, name, _context: names.append(name),
    )
    with serving(other) as port:
        assert probe(port, "--ca", ca, "--sni", "other.example").code == 0
        assert probe(port, "--ca", ca).code == 6
        assert probe(port, "--ca", ca, "--no-sni").code == 6
    assert names == ["other.example", "localhost", None]


def test_secrets_of_the_session_are_logged_on_demand(good, ca, tmp_path):
    keylog = tmp_path / "keys"
    with serving(good) as port:
        assert probe(port, "--ca", ca, "--keylog", keylog).code == 0
    assert "CLIENT_TRAFFIC_SECRET_0" in keylog.read_text()


@pytest.mark.parametrize("command", [["probe"], ["connect", "--tls"]])
def test_secrets_that_cannot_be_kept_are_reported_before_anything_is_done(command, tmp_path):
    keylog = tmp_path / "missing" / "keys"
    done = netsock(*command, "localhost:1", "--keylog", keylog)
    assert done.code == 2
    assert one_line(done) == f"netsock: --keylog {keylog}: No such file or directory"


# Servers that cannot be believed


@pytest.mark.parametrize(
    ("faults", "code", "reason"),
    [
        ({"expired": True}, 10, "certificate has expired"),
        ({"not_yet_valid": True}, 9, "certificate is not yet valid"),
        ({"self_signed": True}, 18, "self-signed certificate"),
        ({"names": ["other.example"]}, 62, "not for 'localhost'"),
        ({"malformed_names": True}, 62, "not for 'localhost'"),
    ],
    ids=["expired", "early", "self-signed", "name", "malformed"],
)
def test_a_server_that_cannot_be_believed_is_looked_at_and_unverified(
    faults, code, reason, tmp_path, authority, ca
):
    names = faults.pop("names", ["localhost"])
    bad = tls(authority.issue(*names, **faults).pem, tmp_path)
    with serving(bad) as port:
        report, address = found_by(probe(port, "--ca", ca, "--json"))
    assert (report["outcome"], report["exit_status"]) == ("unverified", 6)
    assert address["verified"] is False
    assert address["chain_verified"] == []
    assert code in [problem["code"] for problem in address["problems"]]
    assert address["tls"]["version"] == "TLSv1.3"
    assert len(address["chain_sent"]) == 1
    assert reason in address["problems"][0]["reason"]


def test_the_text_says_first_and_last_that_nothing_is_verified(tmp_path, authority, ca):
    with serving(tls(authority.issue("localhost", expired=True).pem, tmp_path)) as port:
        text = probe(port, "--ca", ca)
    assert text.code == 6
    assert f"127.0.0.1:{port}  UNVERIFIED\n" in text.output
    last = text.output.splitlines()[-1]
    assert last == "UNVERIFIED: this may be anybody (certificate has expired)"
    assert "  verified " not in text.output


def test_an_authority_that_is_not_trusted_is_no_authority(tmp_path, other_authority, ca):
    with serving(tls(other_authority.issue("localhost").pem, tmp_path)) as port:
        done = probe(port, "--ca", ca)
        assert done.code == 6
        assert "UNVERIFIED: this may be anybody (unable to get" in done.output
        # Nor is it for the platform.
        assert probe(port).code == 6


def test_every_problem_is_reported_not_only_the_first(tmp_path, other_authority, ca):
    bad = tls(other_authority.issue("other.example", expired=True).pem, tmp_path)
    with serving(bad) as port:
        _, address = found_by(probe(port, "--ca", ca, "--json"))
    assert {10, 20, 62} <= {problem["code"] for problem in address["problems"]}


@pytest.mark.parametrize(("wanted", "code"), [("28d", 0), ("40d", 7), ("1h", 0)])
def test_what_expires_too_soon_fails(wanted, code, good, ca):
    with serving(good) as port:
        done = probe(port, "--ca", ca, "--expect-expiry", wanted)
    assert done.code == code
    assert ("EXPIRING: CN=localhost on 2" in done.output) is (code == 7)


HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\nverified\x7f\u202e\u2028"


@needs("setsid")
def test_what_a_hostile_server_calls_itself_does_not_reach_the_terminal(tmp_path):
    authority = CertificateAuthority("authority " + HOSTILE)
    bad = tls(authority.issue("localhost", common_name=HOSTILE).pem, tmp_path)
    with serving(bad) as port:
        text, found = probe(port), probe(port, "--json")
        with in_terminal("probe", f"localhost:{port}") as terminal:
            assert terminal.ends() == 6
    for output in (text.output, found.output, terminal.shown):
        left = output.replace("\r\n", "\n")
        for colour in ("0", "1", "2", "31", "31;1"):
            left = left.replace(f"\x1b[{colour}m", "")
        assert not set("\x1b\x07\r\x7f\u202e\u2028") & set(left)
        assert "\nverified" not in left
    assert json.loads(found.output)["addresses"][0]["chain_sent"][0]["subject"].count("\x1b") == 2
    assert r"\x1b[2J" in text.output


# Client certificates


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_a_client_certificate_refuses_to_go_without(
    version, tmp_path, authority, ca
):
    strict = tls(
        authority.issue("localhost").pem,
        tmp_path,
        verify_mode=ssl.CERT_REQUIRED,
        client_authority=authority.certificate_pem.decode(),
        maximum_version=version,
    )
    mine = tmp_path / "mine.pem"
    mine.write_bytes(authority.issue("me").pem)
    with serving(strict) as port:
        report, address = found_by(probe(port, "--ca", ca, "--json"))
        text = probe(port, "--ca", ca)
        with_one = probe(port, "--ca", ca, "--cert", mine)
    assert (report["exit_status"], address["outcome"]) == (5, "tls")
    assert address["chain_sent"] != []
    assert "alert from the peer: " in text.output
    assert with_one.code == 0


@needs("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_the_authorities_of_client_certificates_are_named(version, tmp_path, authority, ca):
    pem, port = tmp_path / "server.pem", free_port()
    pem.write_bytes(authority.issue("localhost").pem)
    with started(
        "openssl", "s_server", "-accept", f"{LOOPBACK}:{port}", "-cert", pem, "-key", pem,
        "-quiet", "-www", "-Verify", "1", "-CAfile", ca, version, output=tmp_path / "log",
    ) as child:  # fmt: skip
        child.wait_for_port(port)
        report, address = found_by(probe(port, "--ca", ca, "--json"))
        text = probe(port, "--ca", ca)
    assert report["exit_status"] == 5
    assert address["client_certificate_authorities"] == ["CN=throw-away authority"]
    assert "client auth CN=throw-away authority" in text.output


# Servers that are not there, or behave badly


def mute(connection: socket.socket) -> None:
    drain(connection)


def babble(connection: socket.socket) -> None:
    connection.sendall(b"this is no TLS\r\n" * 100)
    drain(connection)


def hang_up(connection: socket.socket) -> None:
    connection.recv(1)


def slam(connection: socket.socket) -> None:
    connection.recv(1)
    reset(connection)


@pytest.mark.parametrize(
    ("handle", "said"),
    [
        (mute, "handshake: nothing came of it within 0.5 s"),
        (babble, "handshake: "),
        (hang_up, "handshake: "),
        (slam, "handshake: connection reset by peer"),
    ],
)
def test_a_server_that_speaks_no_tls_fails_in_bounded_time(handle, said, ca):
    with serving(handle) as port:
        done = probe(port, "--ca", ca, "--timeout", "500ms")
    assert (done.code, done.errors) == (5, "")
    assert f"127.0.0.1:{port}  TLS FAILED\n" in done.output
    assert said in done.output


def greeting(text: bytes) -> Handler:
    def handle(connection: socket.socket) -> None:
        connection.sendall(text)
        drain(connection)

    return handle


def page(connection: socket.socket) -> None:
    """Answer anything as a server of HTTP that was not asked for a page."""
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    drain(connection)


@pytest.mark.parametrize(
    ("handle", "said"),
    [
        (page, "HTTP"),
        (greeting(b"SSH-2.0-OpenSSH_9.6\r\n"), "SSH"),
        (greeting(b"220 mail.example ESMTP Postfix\r\n"), "SMTP; try --starttls smtp"),
        (greeting(b"220-ProFTPD Server\r\n"), "FTP; try --starttls ftp"),
        (greeting(b"220 hello\r\n"), "SMTP or FTP"),
        (greeting(b"* OK [CAPABILITY IMAP4rev1] ready\r\n"), "IMAP; try --starttls imap"),
        (greeting(b"+OK ready\r\n"), "POP3; try --starttls pop3"),
        (greeting(b"200 news\r\n"), "NNTP; try --starttls nntp"),
        (greeting(b'"IMPLEMENTATION" "x"\r\nOK\r\n'), "Sieve; try --starttls sieve"),
        (greeting(b"\x4a\0\0\0\x0a8.0.36\0"), "MySQL; try --starttls mysql"),
    ],
)
def test_a_server_that_speaks_something_else_is_recognised(handle, said, ca):
    with serving(handle) as port:
        text = probe(port, "--ca", ca)
        _, address = found_by(probe(port, "--ca", ca, "--json"))
    assert text.code == 5
    assert text.output.endswith(f"\nTLS FAILED: no TLS there: looks like {said}\n")
    assert address["plain"] == said.partition(";")[0]


def test_a_port_that_refuses_is_unreachable(ca):
    report, address = found_by(probe(free_port(), "--ca", ca, "--json"))
    assert (report["outcome"], report["exit_status"]) == ("unreachable", 4)
    assert (address["reached"], address["stage"], address["tls"]) == (False, "connect", None)
    assert address["error"]["type"] == "SocketConnectionRefusedError"


def test_a_port_that_does_not_answer_is_unreachable_in_bounded_time():
    with socket.create_server((LOOPBACK, 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        # Its queue is full now.
        with socket.create_connection((LOOPBACK, port)):
            done = probe(port, "--timeout", "300ms")
    assert done.code == 4
    assert "connect: nothing came of it within 0.3 s" in done.output


def test_a_host_that_is_not_there_is_not_found():
    done = netsock("probe", "nowhere.invalid", "--timeout", "5s", "--json")
    report = json.loads(done.output)
    assert (done.code, report["outcome"], report["addresses"]) == (3, "not_found", [])
    assert report["error"]["type"] in {"HostNotFoundError", "SocketConnectionTimeoutError"}


# The command itself


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--expct-expiry", "30d", "localhost"], "did you mean --expect-expiry?"),
        (["localhost", "--starttls", "smpt"], "--starttls smpt: it must be one of smtp,"),
        (["localhost", "--starttls", "postgresql"], "did you mean postgres?"),
        (["localhost", "--timeout", "5"], "--timeout='5' must be a number with a unit"),
        (["localhost", "--expect-expiry", "30"], "also d, for days"),
        (["localhost:port:443"], "localhost:port:443: "),
        (["localhost:"], "localhost:: the port is missing"),
        (["localhost:0"], "the port must be from 1 to 65535"),
        (["localhost:70000"], "70000"),
        (["https://localhost/"], "not a URL"),
        (["[localhost]:443"], "brackets are for IPv6"),
        (["bad host"], "'bad host' is no name"),
        (["\x1b[2Jhost"], r"\x1b[2Jhost"),
        ([], "give one HOST"),
        (["localhost", "bad host"], "'bad host' is no name"),
        (["localhost", "--ca", "/nowhere.pem"], "--ca='/nowhere.pem'"),
        (["localhost", "--key", "key.pem"], "--key needs --cert"),
        (["localhost", "--min-tls", "1.1"], "--min-tls 1.1: it must be 1.2 or 1.3"),
        (["localhost", "--min-tls", "1.3", "--max-tls", "1.2"], "--max-tls"),
        (["localhost", "--sni", "a", "--no-sni"], "--sni and --no-sni"),
        (["localhost", "-4", "-6"], "--ipv4 and --ipv6"),
        (["localhost", "--alpn", "h2,"], "alpn"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, said, capfd):
    assert main(["probe", *arguments]) == 2
    output, errors = capfd.readouterr()
    assert output == ""
    [line] = errors.splitlines()
    assert line.startswith("netsock: ")
    assert said in line
    assert "\x1b" not in line


def test_a_mistake_is_so_for_the_shell_too():
    done = netsock("probe", "localhost", "--jsn")
    assert (done.code, done.output) == (2, "")
    assert one_line(done) == "netsock: there is no option --jsn; did you mean --json?"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once(number, status, tmp_path):
    arrived, output = threading.Event(), tmp_path / "output"
    with (
        serving(mute_after(arrived)) as port,
        started(*NETSOCK, "probe", f"127.0.0.1:{port}", output=output) as child,
    ):
        assert arrived.wait(LONGEST)
        assert child.end(number) == status
        assert child.output == ""


def test_a_reader_that_is_gone_ends_it_quietly(good, ca):
    reader, writer = os.pipe()
    os.close(reader)
    with serving(good) as port:
        try:
            done = subprocess.run(
                [*NETSOCK, "probe", f"localhost:{port}", "--ca", str(ca)],
                stdout=writer, stderr=subprocess.PIPE, check=False, timeout=LONGEST,
            )  # fmt: skip
        finally:
            os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("code", [0, 6])
def test_under_twist_it_ends_the_reactor_and_says_the_same(code, good, ca):
    with serving(good) as port:
        trust = ("--ca", ca) if code == 0 else ()
        done = run(*TWIST, "netsock", "probe", f"localhost:{port}", "-4", *trust)
    assert done.code == code
    assert done.output.startswith(f"localhost, port {port}, 1 address")
    assert done.output.splitlines()[-1].startswith("verified" if code == 0 else "UNVERIFIED")
    # The log has gone elsewhere.
    assert "Starting reactor" in done.errors


NGINX = """
daemon off; master_process off; pid {directory}/pid; error_log stderr;
events {{ worker_connections 16; }}
http {{
    access_log off; client_body_temp_path {directory}/a; proxy_temp_path {directory}/b;
    fastcgi_temp_path {directory}/c; uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
    server {{
        listen 127.0.0.1:{port} ssl; ssl_certificate {pem}; ssl_certificate_key {pem};
    }}
}}
"""


@needs("nginx")
def test_nginx_is_probed(tmp_path, authority, ca):
    pem, port = tmp_path / "server.pem", free_port()
    pem.write_bytes(authority.issue("localhost").pem)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(NGINX.format(directory=tmp_path, port=port, pem=pem))
    with started(
        find("nginx") or "", "-e", "stderr", "-c", configuration, "-p", tmp_path,
        output=tmp_path / "log",
    ) as child:  # fmt: skip
        child.wait_for_port(port)
        _, address = found_by(probe(port, "--ca", ca, "--json", "--alpn", "http/1.1"))
    assert (address["outcome"], address["tls"]["alpn"]) == ("ok", "http/1.1")


@needs("openssl")
def test_the_server_of_openssl_is_probed(tmp_path, authority, ca):
    pem, port = tmp_path / "server.pem", free_port()
    pem.write_bytes(authority.issue("localhost").pem)
    with started(
        "openssl", "s_server", "-accept", f"{LOOPBACK}:{port}", "-cert", pem, "-key", pem,
        "-quiet", "-www", "-groups", "P-256", output=tmp_path / "log",
    ) as child:  # fmt: skip
        child.wait_for_port(port)
        _, address = found_by(probe(port, "--ca", ca, "--json"))
    assert address["outcome"] == "ok"
    assert "256" in address["tls"]["group"] or "prime" in address["tls"]["group"]
