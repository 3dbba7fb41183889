"""
Processor time of TLS handshakes in memory, both ends, by how the server's chain is judged.

``python -m benchmarks.handshakes`` prints the median of each kind, in microseconds: with an
ordinary chain, with one of which OpenSSL takes the wrong path, and with the strict profile; the
last two as first judged, and as remembered. The rounds take turns, so that a busy machine
slows all kinds alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from twisted_netsock import TLSSocketOptions, client_context_factory
from twisted_netsock._tls.client import ClientContextFactory

HOST = "host.example.com"
KEY = ec.generate_private_key(ec.SECP256R1())


def issue(subject: str, issuer: str, purpose: x509.ObjectIdentifier | None) -> x509.Certificate:
    """Issue a certificate with `KEY`, of the server if it is called `HOST`, else an authority."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now, public, own = datetime.now(UTC), KEY.public_key(), subject == HOST
    builder = (
        x509.CertificateBuilder(
            name(issuer),
            name(subject),
            public,
            x509.random_serial_number(),
            now - timedelta(days=1),
            now + timedelta(days=9),
        )
        .add_extension(x509.BasicConstraints(not own, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(
            x509.KeyUsage(own, False, False, False, False, not own, not own, False, False),
            critical=True,
        )
    )
    if own:
        names = x509.SubjectAlternativeName([x509.DNSName(HOST)])
        builder = builder.add_extension(names, critical=False)
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(KEY, SHA256())


ROOT = issue("root", "root", None)
GOOD = issue("middle", "root", ExtendedKeyUsageOID.SERVER_AUTH)
WRONG = issue("middle", "root", ExtendedKeyUsageOID.CLIENT_AUTH)
LEAF = issue(HOST, "middle", ExtendedKeyUsageOID.SERVER_AUTH)


def server(*chain: x509.Certificate) -> SSL.Context:
    """Return the context of a server that sends *chain*."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(chain[0])
    context.use_privatekey(KEY)
    for each in chain[1:]:
        context.add_extra_chain_cert(each)
    return context


def handshake(factory: ClientContextFactory, context: SSL.Context) -> float:
    """Perform one, and return its seconds of processor time."""
    begin = time.thread_time()
    ours, theirs = factory.connection(None), SSL.Connection(context, None)
    theirs.set_accept_state()
    for _ in range(2):
        for here, there in ((ours, theirs), (theirs, ours)):
            try:
                here.do_handshake()
            except SSL.WantReadError:
                pass
            there.bio_write(here.bio_read(1 << 16))
    ours.do_handshake()
    ours.state.verification.conclude()
    ours.state.verification.first_expiry()
    return time.thread_time() - begin


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds

    def client(profile: str) -> ClientContextFactory:
        options = TLSSocketOptions(trusted_certificates=ROOT, certificate_profile=profile)
        return client_context_factory(options, HOST)

    default, strict = client("default"), client("strict")
    ordinary, alternate = server(LEAF, GOOD), server(LEAF, WRONG, GOOD)

    def anew(factory: ClientContextFactory, context: SSL.Context) -> float:
        factory._built.paths._kept.clear()
        return handshake(factory, context)

    kinds: dict[str, Callable[[], float]] = {
        "default, ordinary chain": lambda: handshake(default, ordinary),
        "default, another path, first": lambda: anew(default, alternate),
        "default, another path, remembered": lambda: handshake(default, alternate),
        "strict, first": lambda: anew(strict, ordinary),
        "strict, remembered": lambda: handshake(strict, ordinary),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, measure in kinds.items():
            seconds[kind].append(measure())
    reference = statistics.median(next(iter(seconds.values())))
    for kind, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{kind:36} {median * 1e6:7.0f} us  {median / reference:5.2f}")


if __name__ == "__main__":
    main()
