"""The authorities that the platform names, and what it takes from its list again."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL, crypto

from tests.support.peers import NAME, perform_handshake
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    client_endpoint,
    make_client_tls_socket,
    make_server_tls_socket,
    server_context_factory,
)
from twisted_netsock._tls import client
from twisted_netsock.errors import CertificateVerificationError

pytestmark = pytest.mark.once

OPTIONS = TLSSocketOptions()


@pytest.fixture
def believed(authority) -> Callable[[Any], bool]:
    """Whether a factory's clients believe a server that the authority vouches for."""
    options = ServerTLSSocketOptions(certificates=authority.issue(NAME).pem)
    server = server_context_factory(options)

    def believes(factory: Any) -> bool:
        try:
            perform_handshake(factory.connection(None), server.connection(None))
        except SSL.Error:
            return False
        return True

    return believes


def hashed(directory: Path, certificate: Any, number: int = 0) -> Path:
    """Return the path at which OpenSSL looks for *certificate* in *directory*."""
    name = crypto.X509.from_cryptography(certificate).subject_name_hash()
    return directory / f"{name:08x}.{number}"


@pytest.fixture(
    params=["file", "same size and time", "directory", "second", "links", "fallback", "both"]
)
def take_back(request, authority, other_authority, tmp_path, monkeypatch) -> Callable[[], None]:
    """Have the platform name the authority, in some way; what this returns takes it back."""
    # A context of another test may be kept that was read from the places of this machine.
    monkeypatch.setattr(client, "_kept", OrderedDict())
    empty = tmp_path / "empty"
    empty.mkdir()
    directory = tmp_path / "certs"
    directory.mkdir()
    file = tmp_path / "bundle.pem"
    mine, others = authority.certificate_pem, other_authority.certificate_pem
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(empty))
    match request.param:
        case "file":
            file.write_bytes(mine + others)
            monkeypatch.setenv("SSL_CERT_FILE", str(file))
            return lambda: file.write_bytes(others)
        case "same size and time":
            size = max(len(mine), len(others)) + 1
            file.write_bytes(mine.ljust(size, b"\n"))
            monkeypatch.setenv("SSL_CERT_FILE", str(file))

            def restore() -> None:
                then = file.stat()
                # The kernel's time of files goes on in steps of some milliseconds.
                for _ in range(1000):
                    file.write_bytes(others.ljust(size, b"\n"))
                    os.utime(file, ns=(then.st_mtime_ns, then.st_mtime_ns))
                    if file.stat().st_ctime_ns != then.st_ctime_ns:
                        return
                    time.sleep(0.001)

            return restore
        case "directory" | "second":
            path = hashed(directory, authority.certificate)
            path.write_bytes(mine)
            places = [directory] if request.param == "directory" else [empty, directory]
            monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join(map(str, places)))
            return path.unlink
        case "links":
            file.write_bytes(mine)
            hashed(directory, authority.certificate).symlink_to(file)
            monkeypatch.setenv("SSL_CERT_DIR", str(directory))
            return lambda: file.write_bytes(others)
        case "fallback":
            # Where the wheels look, whose OpenSSL has been built for places that are nowhere.
            monkeypatch.delenv("SSL_CERT_FILE")
            monkeypatch.delenv("SSL_CERT_DIR")
            file.write_bytes(mine)
            monkeypatch.setattr(SSL, "_CERTIFICATE_FILE_LOCATIONS", [str(file)])
            monkeypatch.setattr(SSL, "_CERTIFICATE_PATH_LOCATIONS", [str(directory)])
            return lambda: file.write_bytes(others)
        case _:
            file.write_bytes(mine)
            hashed(directory, authority.certificate).write_bytes(mine)
            monkeypatch.setenv("SSL_CERT_FILE", str(file))
            monkeypatch.setenv("SSL_CERT_DIR", str(directory))

            def take() -> None:
                file.write_bytes(others)
                hashed(directory, authority.certificate).unlink()

            return take


def test_what_the_platform_takes_back_the_next_context_does_not_trust(take_back, believed):
    before = client_context_factory(OPTIONS, NAME)
    assert believed(before)
    assert before.signature == before.current_signature()
    assert client_context_factory(OPTIONS, NAME)._built is before._built
    take_back()
    assert before.signature != before.current_signature()
    assert not believed(client_context_factory(OPTIONS, NAME))
    before.swap(before.build())
    assert not believed(before)


def test_an_authority_that_is_back_is_trusted_again(authority, believed, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert not believed(client_context_factory(OPTIONS, NAME))
    hashed(tmp_path, authority.certificate).write_bytes(authority.certificate_pem)
    assert believed(client_context_factory(OPTIONS, NAME))


def test_reading_again_never_gives_what_is_kept(authority, tmp_path):
    """Whatever the files' times and sizes say."""
    file = tmp_path / "trusted.pem"
    file.write_bytes(authority.certificate_pem)
    for options in (OPTIONS, TLSSocketOptions(trusted_certificates=file)):
        factory = client_context_factory(options, NAME)
        built = factory.build()
        assert built is not factory._built
        assert built.sessions is not factory._built.sessions
        # What is made from now on uses it as well.
        assert client_context_factory(options, NAME)._built is built


@pytest.mark.parametrize("way", ["reloaded", "new endpoint", "socket"])
async def test_no_way_in_trusts_what_the_platform_took_back(
    way, authority, other_authority, tmp_path, monkeypatch
):
    from twisted.internet.protocol import Factory, Protocol

    from tests.support.clocks import the_reactor

    file = tmp_path / "bundle.pem"
    file.write_bytes(authority.certificate_pem + other_authority.certificate_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    options = ServerTLSSocketOptions(certificates=authority.issue("127.0.0.1").pem)
    async with await make_server_tls_socket("127.0.0.1", 0, options) as listener:
        port = listener.getsockname()[1]
        accepting = listener.accept()
        accepting.addErrback(lambda _: None)
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", port, OPTIONS)
        client = await make_client_tls_socket("127.0.0.1", port)
        (await accepting).abort()
        client.abort()
        file.write_bytes(other_authority.certificate_pem)
        accepting = listener.accept()
        accepting.addErrback(lambda _: None)
        if way == "reloaded":
            await endpoint.reload()
        elif way == "new endpoint":
            endpoint = client_endpoint(the_reactor(), "127.0.0.1", port, OPTIONS)
        with pytest.raises(CertificateVerificationError):
            if way == "socket":
                await make_client_tls_socket("127.0.0.1", port)
            else:
                await endpoint.connect(Factory.forProtocol(Protocol))
