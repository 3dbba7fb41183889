"""What certificates, keys and trusted certificates may be given as, and what may not."""

from __future__ import annotations

import base64
import functools
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from tests.support.peers import (
    NAME,
    Entity,
    Hierarchy,
    der,
    key_bytes,
    make_entity,
    make_hierarchy,
    pem,
    perform_handshake,
    presented,
    problem_of,
    store,
)
from tests.support.processes import needs, run
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)
from twisted_netsock._certificates.certificates import file_signature, load_trusted
from twisted_netsock._tls.context import name_authorities

pytestmark = pytest.mark.once

PASSWORD = b"correct horse battery staple"


@pytest.fixture(scope="module")
def chain() -> Hierarchy:
    return make_hierarchy(NAME)


@functools.cache
def key_of(kind: str) -> Any:
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind == "EC":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


# What is taken

Sources = Callable[[Entity, Path], dict[str, Any]]


def _written(directory: Path, name: str, content: bytes) -> str:
    file = directory / name
    file.write_bytes(content)
    return str(file)


FORMS: dict[str, Sources] = {
    "PEM paths": lambda e, d: {
        "certificates": _written(d, "chain", e.chain_pem),
        "private_key": _written(d, "key", e.key_pem),
    },
    "path objects": lambda e, d: {
        "certificates": Path(_written(d, "chain", e.chain_pem)),
        "private_key": Path(_written(d, "key", e.key_pem)),
    },
    "one path for each certificate": lambda e, d: {
        "certificates": [
            _written(d, f"{at}.pem", pem(each))
            for at, each in enumerate((e.certificate, *e.intermediates))
        ],
        "private_key": _written(d, "key", e.key_pem),
    },
    "PEM bytes": lambda e, d: {"certificates": e.chain_pem, "private_key": e.key_pem},
    "PEM bytearray": lambda e, d: {
        "certificates": bytearray(e.chain_pem),
        "private_key": bytearray(e.key_pem),
    },
    "DER bytes": lambda e, d: {
        "certificates": [der(each) for each in (e.certificate, *e.intermediates)],
        "private_key": key_bytes(e.key, Encoding.DER),
    },
    "DER paths": lambda e, d: {
        "certificates": [
            _written(d, f"{at}.der", der(each))
            for at, each in enumerate((e.certificate, *e.intermediates))
        ],
        "private_key": _written(d, "key", key_bytes(e.key, Encoding.DER)),
    },
    "cryptography objects": lambda e, d: {
        "certificates": [e.certificate, *e.intermediates],
        "private_key": e.key,
    },
    "a mixture": lambda e, d: {
        "certificates": [e.certificate, *(pem(each) for each in e.intermediates)],
        "private_key": _written(d, "key", e.key_pem),
    },
    "key behind the certificates": lambda e, d: {"certificates": e.chain_pem + e.key_pem},
    "key before the certificates": lambda e, d: {"certificates": e.key_pem + e.chain_pem},
    "key behind the certificates, a path": lambda e, d: {
        "certificates": _written(d, "both", e.pem)
    },
    "key in a source of its own": lambda e, d: {"certificates": [e.chain_pem, e.key_pem]},
    "key among other text": lambda e, d: {
        "certificates": b"Certificates of ours:\n" + e.chain_pem + b"and the key\n" + e.key_pem
    },
    "Windows line ends": lambda e, d: {"certificates": e.pem.replace(b"\n", b"\r\n")},
    "PKCS#12": lambda e, d: {"certificates": store(e)},
    "PKCS#12, a path": lambda e, d: {"certificates": _written(d, "store", store(e))},
    "PKCS#12 with password": lambda e, d: {
        "certificates": store(e, PASSWORD),
        "private_key_password": PASSWORD,
    },
    "PKCS#12 for the key alone": lambda e, d: {
        "certificates": e.chain_pem,
        "private_key": store(e, PASSWORD),
        "private_key_password": PASSWORD.decode(),
    },
    "encrypted PKCS#8": lambda e, d: {
        "certificates": e.chain_pem,
        "private_key": key_bytes(e.key, password=PASSWORD),
        "private_key_password": PASSWORD,
    },
    "encrypted PKCS#8, DER": lambda e, d: {
        "certificates": e.chain_pem,
        "private_key": key_bytes(e.key, Encoding.DER, password=PASSWORD),
        "private_key_password": PASSWORD.decode(),
    },
    "encrypted key behind the certificates": lambda e, d: {
        "certificates": e.chain_pem + key_bytes(e.key, password=PASSWORD),
        "private_key_password": PASSWORD,
    },
}

TRADITIONAL: dict[str, Sources] = {
    "traditional PEM": lambda e, d: {
        "certificates": e.chain_pem,
        "private_key": key_bytes(e.key, form=PrivateFormat.TraditionalOpenSSL),
    },
    "traditional PEM, encrypted": lambda e, d: {
        "certificates": e.chain_pem,
        "private_key": key_bytes(e.key, form=PrivateFormat.TraditionalOpenSSL, password=PASSWORD),
        "private_key_password": PASSWORD,
    },
    "traditional DER": lambda e, d: {
        "certificates": e.chain_pem,
        "private_key": key_bytes(e.key, Encoding.DER, PrivateFormat.TraditionalOpenSSL),
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["RSA", "EC", "Ed25519"])
def test_a_chain_and_its_key_are_taken_in_every_form(kind, form, chain, tmp_path):
    leaf = make_entity("leaf", NAME, issuer=chain.middle, key=key_of(kind))
    fields = FORMS[form](leaf, tmp_path)
    shown = presented(chain.root.certificate, **fields)
    assert shown == [leaf.certificate, chain.middle.certificate]


@pytest.mark.parametrize("form", TRADITIONAL)
@pytest.mark.parametrize("kind", ["RSA", "EC"])
def test_a_key_is_taken_in_the_traditional_forms(kind, form, chain, tmp_path):
    leaf = make_entity("leaf", NAME, issuer=chain.middle, key=key_of(kind))
    fields = TRADITIONAL[form](leaf, tmp_path)
    shown = presented(chain.root.certificate, **fields)
    assert shown == [leaf.certificate, chain.middle.certificate]


def test_a_key_behind_its_parameters_is_found(chain):
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    traditional = key_bytes(chain.leaf.key, form=PrivateFormat.TraditionalOpenSSL)
    fields = {"certificates": chain.leaf.chain_pem, "private_key": parameters + traditional}
    assert presented(chain.root.certificate, **fields)[0] == chain.leaf.certificate


TRUSTED: dict[str, Callable[[x509.Certificate, x509.Certificate, Path], Any]] = {
    "PEM path": lambda a, b, d: _written(d, "trusted", pem(a) + pem(b)),
    "PEM bytes": lambda a, b, d: pem(a) + pem(b),
    "DER bytes": lambda a, b, d: [der(a), der(b)],
    "DER path": lambda a, b, d: [_written(d, "a", der(a)), Path(_written(d, "b", der(b)))],
    "objects": lambda a, b, d: (a, b),
    "a key beside": lambda a, b, d: pem(a) + key_bytes(key_of("EC")) + pem(b),
    "the same twice": lambda a, b, d: [b, b, pem(b), a],
    "PKCS#12": lambda a, b, d: pkcs12.serialize_key_and_certificates(
        None, None, a, [b], NoEncryption()
    ),
    "PKCS#12, all beside": lambda a, b, d: pkcs12.serialize_key_and_certificates(
        None, None, None, [a, b], NoEncryption()
    ),
}


@pytest.mark.parametrize("form", TRUSTED)
def test_trusted_certificates_are_taken_in_every_form(form, chain, tmp_path):
    other = make_entity("another root", is_authority=True)
    by_other = make_entity("leaf", NAME, issuer=other)
    trusted = TRUSTED[form](other.certificate, chain.root.certificate, tmp_path)
    options = TLSSocketOptions(trusted_certificates=trusted)
    for entity in (chain.leaf, by_other):
        server = server_context_factory(ServerTLSSocketOptions(certificates=entity.pem))
        client = client_context_factory(options, NAME).connection(None)
        perform_handshake(client, server.connection(None))
    stranger = ServerTLSSocketOptions(certificates=make_entity("stranger", NAME).pem)
    client = client_context_factory(options, NAME).connection(None)
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        perform_handshake(client, server_context_factory(stranger).connection(None))


# What is wrong: files


def _make_loop(path: Path) -> None:
    path.symlink_to(path)


def _make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"-")
        file.truncate(17 * 1024 * 1024)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file"),
    "directory": (Path.mkdir, "Is a directory"),
    "loop": (_make_loop, "symbolic links"),
    "empty": (Path.touch, "is an empty file"),
    "blank": (lambda path: path.write_bytes(b" \n\n"), "is an empty file"),
    "huge": (_make_huge, "larger than"),
    # Root, too, can open it and gets an error from reading.
    "unreadable": (lambda path: path.symlink_to("/proc/self/mem"), "Input/output error"),
}


@pytest.mark.parametrize("field", ["certificates", "private_key", "trusted_certificates"])
@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_file_that_cannot_be_used_is_named_with_its_option(bad, field, chain, tmp_path):
    make, why = BAD_FILES[bad]
    path = tmp_path / "the file"
    make(path)
    given = {"certificates": chain.leaf.certificate, "private_key": chain.leaf.key, field: path}
    # Servers take a directory of certificates; see test_directory.
    if field == "trusted_certificates" or (bad, field) == ("directory", "certificates"):
        with pytest.raises(ValueError) as caught:
            client_context_factory(TLSSocketOptions(**given), NAME)
        message = str(caught.value)
    else:
        message = problem_of(**given)
    assert message.startswith(f"{field}={str(path)!r}")
    assert why in message


def test_a_trusted_file_of_a_server_is_read_when_the_context_is_made(chain, tmp_path):
    options = ServerTLSSocketOptions(
        certificates=chain.leaf.pem, trusted_certificates=tmp_path / "missing"
    )
    with pytest.raises(ValueError, match=r"trusted_certificates=.*No such file"):
        server_context_factory(options)


# What is wrong: content


def _broken(content: bytes) -> bytes:
    return content.replace(b"\nMI", b"\n!!", 1)


NOT_CERTIFICATES: dict[str, Callable[[Entity], bytes]] = {
    "text": lambda e: b"this is no certificate at all",
    "something in DER": lambda e: b"\x30\x03\x02\x01\x01",
    "half a certificate in DER": lambda e: der(e.certificate)[:200],
    "a public key": lambda e: e.key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    ),
    "a request": lambda e: (
        x509.CertificateSigningRequestBuilder()
        .subject_name(e.certificate.subject)
        .sign(e.key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    ),
    "a key": lambda e: e.key_pem,
    "broken base64": lambda e: _broken(e.certificate_pem),
    "no end": lambda e: e.certificate_pem[:-10],
    "an empty block": lambda e: b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    "broken behind a good one": lambda e: e.certificate_pem + _broken(e.certificate_pem),
    "nothing but a mark": lambda e: b"-----BEGIN ",
    "an empty PKCS#12": lambda e: store(Entity(e.certificate, e.key), certificate=False),
}


@pytest.mark.parametrize("what", NOT_CERTIFICATES)
def test_what_holds_no_certificate_is_refused(what, chain):
    content = NOT_CERTIFICATES[what](chain.leaf)
    assert "certificate" in problem_of(certificates=content, private_key=chain.leaf.key)
    assert "certificate" in problem_of(certificates=content)


@pytest.mark.parametrize("what", NOT_CERTIFICATES)
def test_what_holds_no_trusted_certificate_is_refused(what, chain):
    content = NOT_CERTIFICATES[what](chain.leaf)
    with pytest.raises(ValueError, match=r"^trusted_certificates .*certificate"):
        client_context_factory(TLSSocketOptions(trusted_certificates=content), NAME)
    options = ServerTLSSocketOptions(certificates=chain.leaf.pem, trusted_certificates=content)
    with pytest.raises(ValueError, match=r"^trusted_certificates .*certificate"):
        server_context_factory(options)


@pytest.mark.parametrize("what", ["text", "something in DER", "half a certificate in DER"])
def test_garbage_for_certificates_is_called_no_certificate(what, chain):
    """Not a key that cannot be used: nobody meant it to be one."""
    content = NOT_CERTIFICATES[what](chain.leaf)
    assert "key that can be used" not in problem_of(certificates=content)


NOT_KEYS: dict[str, Callable[[Entity], bytes]] = {
    "text": lambda e: b"this is no key at all",
    "something in DER": lambda e: b"\x30\x03\x02\x01\x01",
    "half a key in DER": lambda e: key_bytes(e.key, Encoding.DER)[:50],
    "a certificate": lambda e: e.certificate_pem,
    "a certificate in DER": lambda e: der(e.certificate),
    "a public key": NOT_CERTIFICATES["a public key"],
    "broken base64": lambda e: _broken(e.key_pem),
    "no end": lambda e: e.key_pem[:-10],
    "nothing but a mark": lambda e: b"-----BEGIN PRIVATE KEY",
    "PKCS#12 without a key": lambda e: store(e, key=False),
}


@pytest.mark.parametrize("what", NOT_KEYS)
def test_what_holds_no_key_is_refused(what, chain):
    content = NOT_KEYS[what](chain.leaf)
    message = problem_of(certificates=chain.leaf.certificate, private_key=content)
    assert message.startswith("private_key")
    assert ("holds no private key" in message) or (what == "no end" and "is cut off" in message)


@pytest.mark.parametrize("form", ["PEM", "DER", "object", "PKCS#12 without a key"])
def test_certificates_without_any_key_are_refused(form, chain):
    leaf = chain.leaf
    sources = {"PEM": leaf.chain_pem, "DER": der(leaf.certificate), "object": leaf.certificate}
    given = sources.get(form) or store(leaf, key=False)
    assert "without a private key" in problem_of(certificates=given)


def test_a_key_in_place_of_certificates_is_refused(chain):
    assert "no certificate" in problem_of(certificates=chain.leaf.key_pem)


def test_a_server_without_certificates_is_refused():
    with pytest.raises(ValueError, match="certificates and private_key are needed"):
        server_context_factory(ServerTLSSocketOptions())


MISMATCHES: dict[str, Callable[[Hierarchy], dict[str, Any]]] = {
    "another key": lambda h: {
        "certificates": h.leaf.certificate,
        "private_key": key_bytes(ec.generate_private_key(ec.SECP256R1())),
    },
    "a key of another kind": lambda h: {
        "certificates": h.leaf.certificate,
        "private_key": key_of("RSA"),
    },
    "a key that cannot sign": lambda h: {
        "certificates": h.leaf.certificate,
        "private_key": x25519.X25519PrivateKey.generate(),
    },
    "the authority first": lambda h: {
        "certificates": h.middle.certificate_pem + h.leaf.pem,
    },
    "in PKCS#12": lambda h: {
        "certificates": h.leaf.certificate,
        "private_key": store(h.middle),
    },
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_a_key_of_another_certificate_is_refused(what, chain):
    message = problem_of(**MISMATCHES[what](chain))
    assert message.startswith("private_key does not match certificates")
    first = "the intermediate" if what == "the authority first" else "the leaf"
    assert f"CN={first}" in message


@pytest.mark.parametrize("kind", ["public key", "request", "list"])
def test_an_object_that_is_no_certificate_is_refused(kind, chain):
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(chain.leaf.certificate.subject)
        .sign(chain.leaf.key, hashes.SHA256())
    )
    wrong = {
        "public key": chain.leaf.key.public_key(),
        "request": request,
        "list": x509.CertificateRevocationListBuilder()
        .issuer_name(chain.root.certificate.subject)
        .last_update(chain.root.certificate.not_valid_before_utc)
        .next_update(chain.root.certificate.not_valid_after_utc)
        .sign(chain.root.key, hashes.SHA256()),
    }[kind]
    with pytest.raises((TypeError, ValueError), match="certificates"):
        client_context_factory(
            TLSSocketOptions(certificates=[chain.leaf.certificate, wrong]), NAME
        )
    with pytest.raises((TypeError, ValueError), match="trusted_certificates"):
        client_context_factory(TLSSocketOptions(trusted_certificates=wrong), NAME)


STRANGE = {
    "an unknown kind of key": ("06072a8648ce3d0201", "06072a8648ce3d0209"),
    "an unknown curve": ("06082a8648ce3d030107", "06082a8648ce3d03017f"),
    "an unknown version": ("a003020102", "a003020109"),
    "a name of an unknown kind": ("06035504030c", "060355040300"),
    "a date that is none": ("170d32", "170d61"),
}


@pytest.mark.parametrize("field", ["certificates", "trusted_certificates"])
@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_certificate_is_a_value_error_or_of_no_concern(what, encoding, field, chain):
    """In a trusted one the kind of key matters to OpenSSL alone, when it is used."""
    usual, strange = map(bytes.fromhex, STRANGE[what])
    content = der(chain.leaf.certificate)
    assert usual in content
    content = content.replace(usual, strange)
    if encoding is Encoding.PEM:
        lines = base64.encodebytes(content)
        content = b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"
    if field == "certificates":
        assert "certificate" in problem_of(certificates=content, private_key=chain.leaf.key)
        return
    for make in (
        lambda: client_context_factory(TLSSocketOptions(trusted_certificates=content), NAME),
        lambda: server_context_factory(
            ServerTLSSocketOptions(certificates=chain.leaf.pem, trusted_certificates=content)
        ),
    ):
        try:
            make()
        except ValueError as error:
            assert field in str(error)  # noqa: PT017 - see the docstring


def test_a_key_that_is_too_weak_for_tls_is_refused():
    weak = make_entity("weak", NAME, key=rsa.generate_private_key(65537, 1024))
    assert "cannot be used for TLS" in problem_of(certificates=weak.pem)


def test_base64_without_its_frame_is_no_pem(chain):
    bare = base64.b64encode(der(chain.leaf.certificate))
    assert "certificate" in problem_of(certificates=bare, private_key=chain.leaf.key)


def test_a_store_of_which_cryptography_warns_is_taken_whatever_warnings_do() -> None:
    """It goes on with another parser, and says that it may not for ever."""
    data = store(make_entity(NAME), PASSWORD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        server_context_factory(
            ServerTLSSocketOptions(certificates=data + data[-20:], private_key_password=PASSWORD)
        )


# Files as the world has them


def trusting(*settings: str, chain: Any) -> bytes:
    """Return the root as OpenSSL's TRUSTED CERTIFICATE, with *settings*."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(chain.root.certificate_pem)
        return run("openssl", "x509", "-in", file.name, "-trustout", *settings).output.encode()


def trusted_by(record: type[TLSSocketOptions], data: bytes, **fields: Any) -> list[bytes] | None:
    found = load_trusted(record(trusted_certificates=data, **fields))
    return None if found is None else [der(certificate) for certificate in found]


CUT = {
    "within Base64": lambda pem: pem[:-120],
    "within the END line": lambda pem: pem[:-10],
    "after BEGIN": lambda pem: pem + b"-----BEGIN CERTIFICATE-----\n",
    "before another": lambda pem: pem[:-60] + b"\n" + pem,
    "within a line": lambda pem: pem.replace(b"\n-----END", b"A\n-----END", 1),
}


@pytest.mark.parametrize("place", CUT)
def test_a_block_that_is_cut_off_is_refused_wherever_it_stands(place, chain):
    whole = chain.leaf.certificate_pem + chain.root.certificate_pem
    message = problem_of(certificates=CUT[place](whole), private_key=chain.leaf.key)
    assert "cut off" in message
    with pytest.raises(ValueError, match="cut off"):
        trusted_by(TLSSocketOptions, CUT[place](whole))


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "a byte order mark": lambda pem: b"\xef\xbb\xbf" + pem,
    "CRLF": lambda pem: pem.replace(b"\n", b"\r\n"),
    "CR": lambda pem: pem.replace(b"\n", b"\r"),
    "blanks behind lines": lambda pem: pem.replace(b"\n", b" \t\n"),
    "no newline at the end": lambda pem: pem.rstrip(),
    "comments": lambda pem: b"# CA, after -----BEGIN CERTIFICATE-----\nSubject: x\n" + pem + b"#",
}


@pytest.mark.parametrize("text", TEXTS)
def test_pem_is_taken_as_editors_and_tools_save_it(text, chain):
    pem = TEXTS[text](chain.root.certificate_pem)
    assert trusted_by(TLSSocketOptions, pem) == [der(chain.root.certificate)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(encoding, chain):
    text = chain.root.certificate_pem.decode().encode(encoding)
    with pytest.raises(ValueError, match="UTF-16"):
        trusted_by(TLSSocketOptions, text)


@pytest.mark.parametrize(
    ("settings", "servers", "clients"),
    [
        ((), True, True),
        (("-addtrust", "serverAuth"), True, False),
        (("-addtrust", "clientAuth"), False, True),
        (("-addtrust", "anyExtendedKeyUsage"), True, True),
        (("-addreject", "serverAuth"), False, True),
        (("-addreject", "anyExtendedKeyUsage"), False, False),
    ],
)
@needs("openssl")
def test_trust_settings_of_openssl_count(settings, servers, clients, chain):
    block = trusting(*settings, chain=chain)
    other = make_entity("other").certificate
    for record, trusted in ((TLSSocketOptions, servers), (ServerTLSSocketOptions, clients)):
        expected = [der(chain.root.certificate)] if trusted else []
        both = block + other.public_bytes(Encoding.PEM)
        assert trusted_by(record, both) == [*expected, der(other)]
        if not trusted:
            with pytest.raises(ValueError, match="no certificate that is to be trusted"):
                trusted_by(record, block)


def test_a_trust_store_may_have_a_password(chain):
    data = store(chain.root, PASSWORD)
    fields = {"trusted_certificates_password": PASSWORD}
    assert trusted_by(TLSSocketOptions, data, **fields) == [der(chain.root.certificate)]
    for wrong in ({}, {"trusted_certificates_password": "wrong"}):
        with pytest.raises(ValueError, match="trusted_certificates_password"):
            trusted_by(TLSSocketOptions, data, **wrong)


@pytest.mark.parametrize("kind", ["FIFO", "/dev/fd"])
def test_a_pipe_is_read_once_however_often_a_record_is_used(kind, chain, tmp_path):
    pem = chain.root.certificate_pem
    if kind == "FIFO":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
        writer = threading.Thread(target=lambda: Path(path).write_bytes(pem))
        writer.start()
    else:
        receiving, sending = os.pipe()
        os.write(sending, pem)
        os.close(sending)
        path = f"/dev/fd/{receiving}"
    signature = file_signature([path])
    for _ in range(3):
        assert trusted_by(TLSSocketOptions, path) == [der(chain.root.certificate)]
    assert file_signature([path]) == signature
    if kind == "FIFO":
        writer.join()
    else:
        os.close(receiving)


def test_a_key_that_everybody_can_read_is_warned_of_once(chain, tmp_path, log_lines):
    path = tmp_path / "both.pem"
    path.write_bytes(chain.leaf.pem)
    for mode, warnings_so_far in ((0o600, 0), (0o640, 0), (0o644, 1), (0o644, 1)):
        path.chmod(mode)
        server_context_factory(ServerTLSSocketOptions(certificates=path))
        lines = [line for line in log_lines if "can be read by every user" in line]
        assert len(lines) == warnings_so_far
    assert f"certificates='{path}'" in lines[0]
    assert "0644" in lines[0]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("DSA", lambda: dsa.generate_private_key(2048)),
        ("secp256k1", lambda: ec.generate_private_key(ec.SECP256K1())),
    ],
)
def test_a_key_that_no_handshake_can_use_is_refused(kind, make):
    entity = make_entity(NAME, key=make())
    assert f"({kind})" in problem_of(certificates=entity.pem)


def shown(certificate: Any, source: Any, key: Any) -> bool:
    """Return whether a client that believes *certificate* sees it, of a server with those."""
    return presented(certificate, certificates=source, private_key=key) == [certificate]


@needs("openssl")
def test_a_key_for_rsassa_pss_alone_serves(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    run(
        "openssl",
        "genpkey",
        "-algorithm",
        "RSA-PSS",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-out",
        key,
    )
    run(
        "openssl",
        "req",
        "-x509",
        "-new",
        "-key",
        key,
        "-subj",
        "/CN=x",
        "-days",
        "5",
        "-addext",
        f"subjectAltName=DNS:{NAME}",
        "-out",
        certificate,
    )
    expected = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert shown(expected, certificate, key)


@pytest.mark.parametrize("kind", ["MLDSA44", "MLDSA65", "MLDSA87"])
@pytest.mark.parametrize("form", ["object", "PEM"])
def test_a_post_quantum_key_serves(kind, form):
    mldsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mldsa")
    try:
        key = getattr(mldsa, f"{kind}PrivateKey").generate()
        entity = make_entity(NAME, NAME, key=key)
    except UnsupportedAlgorithm as error:
        pytest.skip(f"this OpenSSL has no ML-DSA: {error}")
    given = key if form == "object" else entity.key_pem
    assert shown(entity.certificate, entity.certificate_pem, given)


@pytest.mark.parametrize(("count", "named"), [(10, 10), (700, 0)])
def test_authorities_are_named_if_they_fit_the_message(count, named, chain):
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o" * 64)] * 2)
    one = make_entity("authority").certificate
    context = SSL.Context(SSL.TLS_METHOD)

    class Named:
        subject = name

    many = [one] * count if count == 10 else [Named()] * count
    name_authorities(context, many)
    assert len(SSL.Connection(context, None).get_client_ca_list()) == named
