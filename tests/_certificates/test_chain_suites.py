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
from tests.support.peers import perform_handshake
from twisted_netsock import TLSSocketOptions, client_context_factory, server_context_factory
from twisted_netsock._certificates.der import without_warnings
from twisted_netsock.testing import CertificateAuthority

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


OWN = CertificateAuthority()
PROFILES = ("default", "strict")


def context_of_peer(sent: list[x509.Certificate], key: Any) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    context.use_certificate(sent[0])
    context.use_privatekey(key)
    for certificate in sent[1:]:
        context.add_extra_chain_cert(certificate)
    return context


def is_accepted(ours: SSL.Connection, theirs: SSL.Connection, when: float) -> bool:
    """Return whether our side ends a handshake with *theirs* well, at the time *when*."""
    store = ours.get_context().get_cert_store()
    assert store is not None
    store.set_time(datetime.fromtimestamp(when, UTC).replace(tzinfo=None))
    with mock.patch("time.time", return_value=when):
        try:
            perform_handshake(ours, theirs)
        except SSL.Error:
            return False
        ours.state.verification.conclude()
    return True


def accepts(context: SSL.Context, host: str, when: float, **fields: Any) -> bool:
    """Return whether our client takes a server with *context*."""
    theirs = SSL.Connection(context, None)
    theirs.set_accept_state()
    factory = client_context_factory(TLSSocketOptions(**fields), host)
    return is_accepted(factory.connection(None), theirs, when)


def accepts_client(context: SSL.Context, when: float, **fields: Any) -> bool:
    """Return whether our server takes a client with *context*."""
    theirs = SSL.Connection(context, None)
    theirs.set_connect_state()
    options = OWN.server_options("localhost", client_certificate_required=True, **fields)
    return is_accepted(server_context_factory(options).connection(None), theirs, when)


def moment(text: str | None) -> float:
    return time.time() if text is None else datetime.fromisoformat(text).timestamp()


def better(case: dict[str, Any], profile: str) -> bool:
    load = x509.load_der_x509_certificate
    sent = [load(base64.b64decode(each)) for each in case["Certs"]]
    key = serialization.load_der_private_key(base64.b64decode(case["Key"]), None)
    context = context_of_peer(sent, key)
    root = load(base64.b64decode(case["root"]))
    when = moment(case["validation_time"])
    return accepts(
        context, case["Host"], when, trusted_certificates=root, certificate_profile=profile
    )


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("number", PATHS)
def test_path_building(number, profile):
    case = PATHS[number]
    assert case["Exp"].startswith("SOFT") or better(case, profile) is (case["Exp"] == "ACCEPT")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("number", NAMES)
def test_name_constraints(number, profile):
    case = NAMES[number]
    assert case["Exp"].startswith("SOFT") or better(case, profile) is (case["Exp"] == "ACCEPT")


_LAX = "OpenSSL accepts it, and so do curl, Python and nginx; the strict profile does not"
_UNUSUAL = "refused by OpenSSL and by the validator"
_NAMES = "the common name is never looked at"
_TWIN = "a twin case demands the opposite"
STRICT_WAIVED = {
    "pathlen::self-issued-certs-pathlen": "the validator counts self-issued ones",
    "rfc5280::ca-as-leaf": _UNUSUAL,
    "rfc5280::nc::permitted-dns-match-noncritical": _TWIN,
    "webpki::cn::ipv4-hex-mismatch": _NAMES,
    "webpki::cn::ipv4-leading-zeros-mismatch": _NAMES,
    "webpki::cn::ipv6-uncompressed-mismatch": _NAMES,
    "webpki::cn::ipv6-uppercase-mismatch": _NAMES,
    "webpki::cn::punycode-not-in-san": _NAMES,
    "webpki::cn::utf8-vs-punycode-mismatch": _NAMES,
    "webpki::eku::ee-without-eku": _TWIN,
    "webpki::san::public-suffix-multi-label-wildcard-san": "it would need a list of suffixes",
}
DEFAULT_WAIVED = {
    **{name: why for name, why in STRICT_WAIVED.items() if not name.startswith("pathlen")},
    **dict.fromkeys(
        [
            "cve::cve-2025-61727",
            "rfc5280::aki::cross-signed-root-missing-aki",
            "rfc5280::aki::intermediate-missing-aki",
            "rfc5280::ca-empty-subject",
            "rfc5280::leaf-ku-keycertsign",
            "rfc5280::nc::invalid-dnsname-leading-period",
            "rfc5280::nc::nc-forbids-dnsname-wildcard-san",
            "rfc5280::nc::nc-permits-invalid-dns-san",
            "rfc5280::nc::not-allowed-in-ee-critical",
            "rfc5280::pc::ica-noncritical-pc",
            "rfc5280::root-missing-basic-constraints",
            "rfc5280::serial::zero",
            "rfc5280::ski::root-missing-ski",
            "webpki::aki::root-with-aki-authoritycertissuer",
            "webpki::aki::root-with-aki-authoritycertserialnumber",
            "webpki::aki::root-with-aki-ski-mismatch",
            "webpki::ee-basicconstraints-ca",
            "webpki::eku::ee-critical-eku",
            "webpki::forbidden-rsa-not-divisible-by-8-in-root",
            "webpki::nc::intermediate-permitted-excluded-subtrees-both-empty-sequences",
            "webpki::san::san-critical-with-nonempty-subject",
            "webpki::malformed-aia",
        ],
        _LAX,
    ),
    "rfc5280::san::underscore-dns": "names with underscores are in use",
}
WAIVED = {"default": DEFAULT_WAIVED, "strict": STRICT_WAIVED}


def shown(case: dict[str, Any]) -> str | None:
    """Return why a handshake cannot show *case*, or `None`."""
    if not case["peer_certificate_key"]:
        return "the suite has no key for it"
    if case["max_chain_depth"] is not None:
        return "sets a depth of its own"
    named = case["expected_peer_name"] or case["validation_kind"] == "CLIENT"
    return None if named else "names no peer"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", LIMBO)
def test_limbo(name, profile, request):
    case = LIMBO[name]
    why = shown(case)
    if why is not None:
        pytest.skip(f"x509-limbo: {why}")
    if name in WAIVED[profile]:
        request.applymarker(pytest.mark.xfail(strict=True, reason=WAIVED[profile][name]))
    load = x509.load_pem_x509_certificate
    pem = [case["peer_certificate"], *case["untrusted_intermediates"]]
    with without_warnings():
        sent = [load(each.encode()) for each in pem]
    key = serialization.load_pem_private_key(case["peer_certificate_key"].encode(), None)
    context = context_of_peer(sent, key)
    fields = {
        "trusted_certificates": tuple(each.encode() for each in case["trusted_certs"]),
        "certificate_profile": profile,
        "revocation_lists": [each.encode() for each in case["crls"]] or None,
    }
    when = moment(case["validation_time"])
    if name == "crl::crlnumber-missing":
        with pytest.raises(ValueError, match="without a number"):
            accepts(context, case["expected_peer_name"]["value"], when, **fields)
        return
    if case["validation_kind"] == "CLIENT":
        accepted = accepts_client(context, when, **fields)
    else:
        accepted = accepts(context, case["expected_peer_name"]["value"], when, **fields)
    assert accepted is (case["expected_result"] == "SUCCESS")
