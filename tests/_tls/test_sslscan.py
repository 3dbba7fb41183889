"""What a scanner finds in our TLS servers: nothing weak."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support.loopback import LOOPBACK
from tests.support.processes import needs, run
from tests.support.streams import in_thread
from tests.support.ways_in import SERVING
from twisted_netsock.testing import CertificateAuthority

pytestmark = [pytest.mark.once, needs("sslscan")]

STRONG = {
    "TLSv1.2": {
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    },
    "TLSv1.3": {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    },
}


async def scan(way: str, authority: CertificateAuthority, path: Path) -> ET.Element:
    async with SERVING[way](authority.server_options()) as served:
        where = f"{LOOPBACK}:{served.port}"
        await in_thread(run, "sslscan", "--no-colour", f"--xml={path}", where)
    found = ET.parse(path).getroot().find("ssltest")
    assert found is not None
    return found


@pytest.mark.parametrize("way", ["socket", "endpoint"])
async def test_no_weak_version_cipher_renegotiation_or_compression(
    way: str, authority: CertificateAuthority, tmp_path: Path
) -> None:
    found = await scan(way, authority, tmp_path / "found.xml")
    versions = {
        f"{each.get('type')} {each.get('version')}": each.get("enabled")
        for each in found.iter("protocol")
    }
    enabled = {version for version, value in versions.items() if value == "1"}
    assert enabled == {"tls 1.2", "tls 1.3"}
    assert {"ssl 2", "ssl 3", "tls 1.0", "tls 1.1"} <= set(versions)
    ciphers: dict[str, set[str]] = {}
    for each in found.iter("cipher"):
        ciphers.setdefault(str(each.get("sslversion")), set()).add(str(each.get("cipher")))
    assert ciphers == STRONG
    assert [each.get("supported") for each in found.iter("renegotiation")] == ["0"]
    assert not [each for each in found.iter("compression") if each.get("supported") == "1"]
    assert {each.get("vulnerable") for each in found.iter("heartbleed")} == {"0"}
