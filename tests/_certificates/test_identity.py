"""Names in certificates: which entries are compared, and how they are read."""

import ipaddress
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtensionOID
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from tests.support.odd_certificates import encoded_certificate, named
from tests.support.peers import perform_handshake
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)
from twisted_netsock._certificates.certificates import load_trusted
from twisted_netsock._certificates.identity import alternative_names, is_for, server_identity

pytestmark = pytest.mark.once

HOST = "host.example.com"
GOOD = b"\x82\x10host.example.com"


ODD = {
    "an address as a dNSName": b"\x82\x09192.0.2.7",
    "a wildcard alone": b"\x82\x01*",
    "a wildcard in the middle": b"\x82\x0fa.*.example.com",
    "an empty dNSName": b"\x82\x00",
    "a dNSName that is not ASCII": b"\x82\x03\xff\xfe\xfd",
    "a URN": b"\x86\x0aurn:uuid:1",
    "a URI with a port": b"\x86\x15https://a.example:443",
    "an ARN": b"\x86\x11arn:aws:ec2::0:i-",
    "an address of three bytes": b"\x87\x03\x01\x02\x03",
    "an SRVName": b"\xa0\x0e\x06\x08\x2b\x06\x01\x05\x05\x07\x08\x07\xa0\x02\x16\x00",
    "a directory name": b"\xa4\x02\x30\x00",
}


@pytest.mark.parametrize("odd", ODD)
def test_an_entry_that_cannot_match_refuses_nothing_and_matches_nothing(odd):
    assert is_for(named(ODD[odd], GOOD), HOST)
    assert not is_for(named(ODD[odd]), HOST)


@pytest.mark.parametrize(
    ("entry", "identity", "matches"),
    [
        (b"\x82\x0d*.example.com", "xn--bcher-kva.example.com", True),
        (b"\x82\x0d*.example.com", "b\u00fccher.example.com", True),
        (b"\x82\x0d*.EXAMPLE.com", HOST, True),
        (b"\x82\x0d*.example.com", "a.host.example.com", False),
        (b"\x82\x0d*.example.com", "example.com", False),
        (b"\x82\x11xn--*.example.com", "xn--bcher-kva.example.com", False),
        (b"\x82\x05*.com", "example.com", False),
        (b"\x82\x09192.0.2.7", "192.0.2.7", False),
        (b"\x87\x04\xc0\x00\x02\x07", "192.0.2.7", True),
        (b"\x87\x10" + bytes(15) + b"\x01", "::1", True),
        (b"\x86\x14spiffe://td.test/one", "spiffe://td.test/one", True),
        (b"\x86\x14spiffe://td.test/one", "spiffe://td.test/two", False),
        (b"\x82\x14spiffe://td.test/one", "spiffe://td.test/one", False),
    ],
)
def test_which_entries_match(entry, identity, matches):
    assert is_for(named(entry), server_identity(identity)) is matches


def test_the_common_name_does_not_match():
    assert not is_for(encoded_certificate(), HOST)


def test_other_extensions_need_not_be_readable():
    """`cryptography` parses all extensions of a certificate, or none."""
    policies = x509.UnrecognizedExtension(ExtensionOID.CERTIFICATE_POLICIES, b"no DER at all")
    names = x509.SubjectAlternativeName([x509.DNSName(HOST)])
    encoded = encoded_certificate(policies, names)
    with pytest.raises(ValueError, match="error parsing"):
        x509.load_der_x509_certificate(encoded).extensions  # noqa: B018
    assert is_for(encoded, HOST)


@pytest.mark.parametrize(
    "names",
    [
        b"\x82\x7fhost.example.com",  # longer than what is there
        b"\x82",  # no length
        b"\x1f\x01\x00",  # a tag of several bytes
    ],
)
def test_names_that_cannot_be_parsed_match_nothing(names):
    with pytest.raises(ValueError, match="certificate"):
        is_for(named(GOOD, names), HOST)


@given(
    st.lists(
        st.one_of(
            st.from_regex(r"[a-z0-9.*-]{0,80}", fullmatch=True).map(x509.DNSName),
            st.ip_addresses().map(x509.IPAddress),
            st.from_regex(r"[a-z]+://[a-z0-9./]{0,150}", fullmatch=True).map(
                x509.UniformResourceIdentifier
            ),
        ),
        min_size=1,
    )
)
def test_names_are_read_as_cryptography_reads_them(names):
    expected = []
    for name in names:
        match name.value:
            case ipaddress.IPv4Address() | ipaddress.IPv6Address() as address:
                expected.append((0x87, address.packed))
            case text:
                expected.append((0x82 if isinstance(name, x509.DNSName) else 0x86, text.encode()))
    assert alternative_names(encoded_certificate(x509.SubjectAlternativeName(names))) == expected


@pytest.mark.parametrize("number", [0, -5])
def test_an_odd_serial_number_warns_of_nothing(number):
    """Roots of the platform have a serial number of 0; whether to warn is up to the program."""
    encoded = encoded_certificate(x509.SubjectAlternativeName([x509.DNSName(HOST)]))
    odd = encoded.replace(b"\x02\x01\x01", bytes([2, 1, number % 256]), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_for(odd, HOST)
        with pytest.raises(CryptographyDeprecationWarning):
            x509.load_der_x509_certificate(odd)
        trusted = load_trusted(TLSSocketOptions(trusted_certificates=odd))
        assert [each.public_bytes(Encoding.DER) for each in trusted] == [odd]


NODE = "db.internal"
SPIFFE = "spiffe://example.org/db"


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize(
    ("names", "identity", "accepted"),
    [
        ([SPIFFE], SPIFFE, True),
        ([SPIFFE, "other.example"], SPIFFE, True),
        ([SPIFFE], "spiffe://example.org/other", False),
        ([SPIFFE], "spiffe://example.org/", False),
        ([SPIFFE], "example.org", False),
        ([NODE], SPIFFE, False),
        (["other.example"], "other.example", True),
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.2", False),
    ],
)
def test_a_client_verifies_the_identity_it_is_given_and_asks_for_the_node(
    names, identity, accepted, profile, authority
):
    record = ServerTLSSocketOptions(certificates=authority.issue(*names).pem)
    server = server_context_factory(record).connection(None)
    options = authority.client_options(server_identity=identity, certificate_profile=profile)
    client = client_context_factory(options, NODE).connection(None)
    if accepted:
        perform_handshake(client, server)
        client.state.verification.conclude()
    else:
        with pytest.raises(SSL.Error):
            perform_handshake(client, server)
        assert f"not for '{identity}'" in str(client.state.verification.failure)
    assert server.get_servername() == NODE.encode()


def test_a_server_identity_serves_where_the_node_is_no_name(authority):
    options = authority.client_options(server_identity=SPIFFE)
    assert client_context_factory(options, None).connection(None) is not None
    with pytest.raises(ValueError, match="server_identity"):
        client_context_factory(authority.client_options(), None)
