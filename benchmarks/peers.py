"""The neutral peers and load generators: C if there is a compiler, else Python."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import Process, find, processors, python

SOURCES = Path(__file__).parent / "peer_in_c"


@dataclass(frozen=True)
class Bench:
    """What all scenarios share: a directory, certificates, and how peers are started."""

    directory: Path
    serving: tuple[str, ...]
    loading: tuple[str, ...]
    secure: bool
    """Whether peers in C speak TLS; if not, Python does it in their place."""

    @property
    def neutral(self) -> bool:
        """Whether the peers are faster than what they measure."""
        return self.secure and self.serving[0] != python("")[0]

    @property
    def authority(self) -> Path:
        """The path of what clients trust."""
        return self.directory / "authority.pem"

    @property
    def certificate(self) -> Path:
        """The path of the servers' certificate and key."""
        return self.directory / "server.pem"

    def serve_words(self, mode: str, *, tls: bool, tickets: int = 0) -> list[str]:
        """Return what starts a neutral server."""
        words = self.serving if self.secure or not tls else _fallback("serve")
        return [*words, mode, *((str(self.certificate), str(tickets)) if tls else ())]

    def serve(
        self, mode: str, processor: int | None, *, tls: bool = False, tickets: int = 0
    ) -> tuple[Process, int]:
        """Start a neutral server, and return its port."""
        words = self.serve_words(mode, tls=tls, tickets=tickets)
        process = Process(*words, processor=processor)
        return process, int(process.line())

    def load(
        self, mode: str, port: int, connections: int, *, tls: bool = False, size: int = 64
    ) -> Process:
        """Start a load generator; it is connected when it says ``ready``."""
        words = self.loading if self.secure or not tls else _fallback("load")
        more = ("tls",) if tls else ()
        _, processor = processors()
        return Process(
            *words, mode, str(port), str(connections), str(size), *more, processor=processor
        )


def _fallback(what: str) -> tuple[str, ...]:
    return (*python("benchmarks.fallback"), what)


def _compile(directory: Path) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Compile the peers, and return what starts them and whether they speak TLS."""
    compiler = find("cc")
    for flags in ((("-DTLS",), ("-lssl", "-lcrypto")), ((), ())):
        if compiler is None:
            break
        try:
            for name in ("serve", "load"):
                words = [compiler, "-O2", "-w", *flags[0], "-o", directory / name]
                subprocess.run(
                    [*words, SOURCES / f"{name}.c", *flags[1]],
                    check=True,
                    capture_output=True,
                    timeout=60,
                )
        except (OSError, subprocess.SubprocessError):
            continue
        return (str(directory / "serve"),), (str(directory / "load"),), bool(flags[0])
    return _fallback("serve"), _fallback("load"), True


@contextmanager
def bench(*, compiled: bool = True) -> Iterator[Bench]:
    """Make the directory, the certificates and the peers."""
    from twisted_netsock.testing import CertificateAuthority

    with tempfile.TemporaryDirectory(prefix="netsock-benchmarks-") as name:
        directory = Path(name)
        made = _compile(directory) if compiled else (_fallback("serve"), _fallback("load"), True)
        result = Bench(directory, *made)
        authority = CertificateAuthority()
        result.authority.write_bytes(authority.certificate_pem)
        result.certificate.write_bytes(authority.issue("localhost", "127.0.0.1").pem)
        yield result
