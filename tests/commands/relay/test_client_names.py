"""Who may use the relay, and where it leads: certificates, names, and what a backend is told."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.processes import find, free_port, needs, run, started, write_certificates
from tests.support.relay import echo_server, running_relay

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def files(tmp_path_factory, authority):
    return write_certificates(tmp_path_factory.mktemp("operation"), authority)


def to(server, more=""):
    return f"netsock:127.0.0.1:{server.port}{more}"


def tls(certificate, more=""):
    return f"netsock-tls:0:node=127.0.0.1:certificates={certificate}{more}"


@needs("openssl", "bash")
@pytest.mark.parametrize(
    ("rule", "served"),
    [
        (("--allow-cn", "web"), True),
        (("--allow-cn", "other"), False),
        (("--allow-uri", "spiffe://example.com/*"), True),
        (("--allow-all",), True),
    ],
)
def test_certificates_decide_who_is_served(rule, served, tmp_path, files, authority):
    shown = tmp_path / "client.pem"
    issued = authority.issue("x.example", "spiffe://example.com/web", common_name="web")
    shown.write_bytes(issued.pem)
    listen = tls(
        files.server, f":trustedCertificates={files.authority}:clientCertificateRequired=yes"
    )
    with (
        echo_server(b"welcome") as server,
        running_relay(tmp_path, "--listen", listen, "--to", to(server), *rule) as (child, [port]),
    ):
        said = run(
            "bash", "-c",
            f"sleep 0.5 | openssl s_client -connect 127.0.0.1:{port} -quiet -no_ign_eof "
            f"-cert {shown} -CAfile {files.authority}",
        )  # fmt: skip
        assert ("welcome" in said.output) is served
        child.wait_for_line("connection closed" if served else "connection denied: .*CN=web")
        assert bool(server.connections) is served
        assert child.end() == 0


@needs("openssl", "bash")
def test_a_client_without_a_certificate_is_denied_by_every_rule(tmp_path, files):
    listen = tls(files.server, f":trustedCertificates={files.authority}")
    with (
        echo_server(b"welcome") as server,
        running_relay(tmp_path, "--listen", listen, "--to", to(server), "--allow-all") as (
            child,
            [port],
        ),
    ):
        said = run(
            "bash", "-c", f"sleep 0.5 | openssl s_client -connect 127.0.0.1:{port} -quiet "
            f"-no_ign_eof -CAfile {files.authority}",
        )  # fmt: skip
        assert "welcome" not in said.output
        child.wait_for_line("connection denied")
        assert not server.connections
        assert child.end() == 0


@needs("curl", "nginx")
def test_names_lead_to_backends(tmp_path, files, authority):
    both = tmp_path / "both.pem"
    both.write_bytes(authority.issue("*.example.com", "localhost").pem)
    with contextlib.ExitStack() as stack:
        ports = [web(stack, tmp_path / name, name) for name in ("www", "any", "rest")]
        child, [port] = stack.enter_context(
            running_relay(
                tmp_path, "--listen", tls(both),
                "--route", f"www.example.com=netsock:127.0.0.1:{ports[0]}",
                "--route", f"*.example.com=netsock:127.0.0.1:{ports[1]}",
                "--to", f"netsock:127.0.0.1:{ports[2]}",
            )
        )  # fmt: skip

        def ask(name):
            return run(
                "curl", "--silent", "--cacert", files.authority, f"https://{name}:{port}/",
                "--resolve", f"{name}:{port}:127.0.0.1",
            ).output  # fmt: skip

        assert ask("www.example.com") == "www"
        assert ask("WWW.example.com") == "www"
        assert ask("api.example.com") == "any"
        assert ask("localhost") == "rest"
        assert child.end() == 0


def web(stack, directory, text) -> int:
    """Run an nginx that answers everything with *text*; return its port."""
    directory.mkdir()
    port = free_port()
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log stderr;\n"
        "events {}\n"
        f"http {{ access_log off; server {{ listen 127.0.0.1:{port};"
        f" return 200 '{text}'; }} }}\n"
    )
    nginx = stack.enter_context(
        started(
            find("nginx"), "-e", "stderr", "-c", configuration, "-p", directory,
            output=directory / "log",
        )
    )  # fmt: skip
    nginx.wait_for_port(port)
    return port


@needs("haproxy", "curl", "openssl", "bash")
def test_a_backend_learns_the_common_name_of_the_client(tmp_path, files, authority):
    """HAProxy takes the header, and answers with what it was told."""
    number = free_port()
    shown = tmp_path / "client.pem"
    shown.write_bytes(authority.issue("client", common_name="the client").pem)
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(
        "defaults\n mode http\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n"
        f"frontend web\n bind 127.0.0.1:{number} accept-proxy\n"
        " http-request return status 200 content-type text/plain lf-string "
        '"%[src] %[fc_pp_authority] %[fc_pp_unique_id]"\n'
    )
    listen = tls(
        files.server, f":trustedCertificates={files.authority}:clientCertificateRequired=yes"
    )
    with (
        started(find("haproxy"), "-f", configuration, output=tmp_path / "haproxy.log") as haproxy,
    ):
        haproxy.wait_for_port(number)
        with running_relay(
            tmp_path, "--listen", listen, "--allow-all",
            "--to", f"netsock:127.0.0.1:{number}:proxyProtocol=v2",
        ) as (child, [port]):  # fmt: skip
            got = run(
                "curl", "--silent", "--show-error", "--cacert", files.authority, "--cert", shown,
                f"https://localhost:{port}/", "--ipv4",
            )  # fmt: skip
            assert got.errors == ""
            assert got.output.split()[:2] == ["127.0.0.1", "localhost"]
            assert child.end() == 0
