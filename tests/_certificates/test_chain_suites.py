"""
Chains of public suites: x509-limbo (https://x509-limbo.com) and BetterTLS (https://bettertls.com).

Their files are no part of this project. They are read from the directory that
``NETSOCK_CHAIN_DATA`` names, or ``shared/data`` beside the checkout; without them there is one
test, which is skipped.
"""

from __future__ import annotations

import base64
import json
import lzma
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from tests.support.package_sources import ROOT
from twisted_netsock import TLSSocketOptions, client_context_factory

DATA = Path(os.environ.get("NETSOCK_CHAIN_DATA") or ROOT.parent / "shared" / "data")
SUITES = {
    "limbo": DATA / "x509-limbo.json.xz",
    "paths": DATA / "bettertls-pathbuilding.json.xz",
    "names": DATA / "bettertls-nameconstraints-sample.json.xz",
}
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not all(path.exists() for path in SUITES.values()),
        reason=f"needs the suites in {DATA}: set NETSOCK_CHAIN_DATA",
    ),
]


def cases(suite: str) -> dict[str, dict[str, Any]]:
    path = SUITES[suite]
    if not path.exists():
        return {"none": {}}
    with lzma.open(path) as file:
        content = json.load(file)
    shared = {key: content[key] for key in ("root", "validation_time") if key in content}
    found = content["testcases"] if suite == "limbo" else content["cases"]
    return {str(case.get("id", case.get("Id"))): {**shared, **case} for case in found}


LIMBO, PATHS, NAMES = (cases(suite) for suite in SUITES)


def accepts(
    sent: list[x509.Certificate], key: Any, trusted: tuple[Any, ...], host: str, when: float
) -> bool:
    """Return whether our client ends a handshake with a server that sends those well."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    context.use_certificate(sent[0])
    context.use_privatekey(key)
    for certificate in sent[1:]:
        context.add_extra_chain_cert(certificate)
    theirs = SSL.Connection(context, None)
    theirs.set_accept_state()
    factory = client_context_factory(TLSSocketOptions(trusted_certificates=trusted), host)
    ours = factory.connection(None)
    store = ours.get_context().get_cert_store()
    assert store is not None
    store.set_time(datetime.fromtimestamp(when, UTC).replace(tzinfo=None))
    with mock.patch("time.time", return_value=when):
        for _ in range(4):
            for here, there in ((ours, theirs), (theirs, ours)):
                try:
                    here.do_handshake()
                except SSL.WantReadError:
                    pass
                except SSL.Error:
                    return False
                try:
                    there.bio_write(here.bio_read(1 << 20))
                except SSL.WantReadError:
                    pass
        ours.state.verification.conclude()
    return True


def moment(text: str | None) -> float:
    return time.time() if text is None else datetime.fromisoformat(text).timestamp()


def better(case: dict[str, Any]) -> bool:
    load = x509.load_der_x509_certificate
    sent = [load(base64.b64decode(each)) for each in case["Certs"]]
    key = serialization.load_der_private_key(base64.b64decode(case["Key"]), None)
    root = load(base64.b64decode(case["root"]))
    return accepts(sent, key, (root,), case["Host"], moment(case["validation_time"]))


@pytest.mark.parametrize("number", PATHS)
def test_path_building(number):
    case = PATHS[number]
    assert case["Exp"].startswith("SOFT") or better(case) is (case["Exp"] == "ACCEPT")


@pytest.mark.parametrize("number", NAMES)
def test_name_constraints(number):
    case = NAMES[number]
    assert case["Exp"].startswith("SOFT") or better(case) is (case["Exp"] == "ACCEPT")


_LAX = "OpenSSL accepts it, and so do curl, Python and nginx; the strict profile does not"
_UNUSUAL = "refused by OpenSSL and by the validator"
WAIVED = {
    "cve::cve-2025-61727": _LAX,
    "rfc5280::aki::cross-signed-root-missing-aki": _LAX,
    "rfc5280::aki::intermediate-missing-aki": _LAX,
    "rfc5280::ca-as-leaf": _UNUSUAL,
    "rfc5280::ca-empty-subject": _LAX,
    "rfc5280::leaf-ku-keycertsign": _LAX,
    "rfc5280::nc::invalid-dnsname-leading-period": _LAX,
    "rfc5280::nc::nc-forbids-dnsname-wildcard-san": _LAX,
    "rfc5280::nc::nc-permits-invalid-dns-san": _LAX,
    "rfc5280::nc::not-allowed-in-ee-critical": _LAX,
    "rfc5280::nc::permitted-dns-match-noncritical": "a twin case demands the opposite",
    "rfc5280::pc::ica-noncritical-pc": _LAX,
    "rfc5280::root-missing-basic-constraints": _LAX,
    "rfc5280::san::underscore-dns": "names with underscores are in use",
    "rfc5280::serial::zero": _LAX,
    "rfc5280::ski::root-missing-ski": _LAX,
    "webpki::aki::root-with-aki-authoritycertissuer": _LAX,
    "webpki::aki::root-with-aki-authoritycertserialnumber": _LAX,
    "webpki::aki::root-with-aki-ski-mismatch": _LAX,
    "webpki::cn::ipv4-hex-mismatch": "the common name is never looked at",
    "webpki::cn::ipv4-leading-zeros-mismatch": "the common name is never looked at",
    "webpki::cn::ipv6-uncompressed-mismatch": "the common name is never looked at",
    "webpki::cn::ipv6-uppercase-mismatch": "the common name is never looked at",
    "webpki::cn::punycode-not-in-san": "the common name is never looked at",
    "webpki::cn::utf8-vs-punycode-mismatch": "the common name is never looked at",
    "webpki::ee-basicconstraints-ca": _LAX,
    "webpki::eku::ee-critical-eku": _LAX,
    "webpki::eku::ee-without-eku": "a twin case demands the opposite",
    "webpki::forbidden-rsa-not-divisible-by-8-in-root": _LAX,
    "webpki::malformed-aia": "extensions that are not needed are not parsed",
    "webpki::nc::intermediate-permitted-excluded-subtrees-both-empty-sequences": _LAX,
    "webpki::san::public-suffix-multi-label-wildcard-san": "it would need a list of suffixes",
    "webpki::san::san-critical-with-nonempty-subject": _LAX,
}


def shown(case: dict[str, Any]) -> str | None:
    """Return why a handshake cannot show *case*, or `None`."""
    if case["validation_kind"] != "SERVER":
        return "a server judges it"
    if not case["peer_certificate_key"]:
        return "the suite has no key for it"
    if case["crls"]:
        return "needs a revocation list"
    if case["max_chain_depth"] is not None:
        return "sets a depth of its own"
    return None if case["expected_peer_name"] else "names no peer"


@pytest.mark.parametrize("name", LIMBO)
def test_limbo(name, request):
    case = LIMBO[name]
    why = shown(case)
    if why is not None:
        pytest.skip(f"x509-limbo: {why}")
    if name in WAIVED:
        request.applymarker(pytest.mark.xfail(strict=True, reason=WAIVED[name]))
    load = x509.load_pem_x509_certificate
    pem = [case["peer_certificate"], *case["untrusted_intermediates"]]
    sent = [load(each.encode()) for each in pem]
    key = serialization.load_pem_private_key(case["peer_certificate_key"].encode(), None)
    trusted = tuple(each.encode() for each in case["trusted_certs"])
    host, when = case["expected_peer_name"]["value"], moment(case["validation_time"])
    assert accepts(sent, key, trusted, host, when) is (case["expected_result"] == "SUCCESS")
