"""The command line of the relay: what is refused, in which words, and what ``--check`` says."""

from __future__ import annotations

import resource

import pytest
from twisted.python.usage import UsageError

from tests.support.processes import run, write_certificates
from tests.support.relay import RELAY, TRACEBACK, check
from twisted_netsock.commands import Options
from twisted_netsock.commands.relay.limits import default_connections
from twisted_netsock.commands.relay.options import RelayOptions

pytestmark = pytest.mark.long

LOCAL = "netsock:0:node=127.0.0.1"
TO = "netsock:127.0.0.1:80"


@pytest.fixture(scope="module")
def files(tmp_path_factory, authority):
    return write_certificates(tmp_path_factory.mktemp("options"), authority)


def settings(*arguments):
    options = RelayOptions()
    options.parseOptions(list(arguments))
    assert options.settings is not None
    return options.settings


def refused(*arguments) -> str:
    with pytest.raises(UsageError) as caught:
        Options().parseOptions(["relay", *arguments])
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--idle-timeout", "10"], ["--idle-timeout='10'", "10s for seconds", "or none"]),
        (["--drain", "none"], ["--drain='none'", "unit"]),
        (["--workers", "0"], ["--workers 0:", "1 to 256", "or auto"]),
        (["--workers", "many"], ["--workers many:", "number"]),
        (["--max-connections", "-1"], ["--max-connections -1:", "from 1"]),
        (["--max-per-client", "x"], ["--max-per-client x:", "or none"]),
        (["--max-handshakes", "0"], ["--max-handshakes 0:"]),
        (["--route", "www.example.com"], ["--route www.example.com:", "NAME=ENDPOINT"]),
        (["--route", "w*=netsock:localhost:80"], ["--route w*=", "'w*'", "*.example.com"]),
        (["--route", "a.example=netsock:localhost"], ["--route a.example to", "service"]),
        (["--allow-cn", "*"], ["--allow-cn *:", "--allow-uri"]),
        (["--allow-spki", "abc"], ["--allow-spki abc:", "sha256//"]),
        (["--allow-all"], ["--listen", "trustedCertificates="]),
        (["--status", "netsock:8080"], ["--status netsock:8080:", "loopback"]),
        (["--status", "tcp:8080"], ["--status tcp:8080:", "loopback"]),
        (["--status", "netsock:8080:nod=::1"], ["--status ", "nod"]),
        (["--lisen", "x"], ["no option --lisen", "did you mean --listen?"]),
        (["--allow-dsn", "x"], ["did you mean --allow-dns?"]),
        (["--xyzzy"], ["no option --xyzzy"]),
        (["netsock:80"], ["unexpected 'netsock:80'"]),
        (["--max-connections", "900000000"], ["--max-connections"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_is_allowed(arguments, said):
    message = refused("--listen", LOCAL, "--to", TO, *arguments)
    for text in said:
        assert text in message


def test_the_first_mistake_is_reported_and_where_the_others_are():
    message = refused("--listen", "netsok:0", "--to", "netsock:x", "--drain", "1")
    assert message.startswith("--listen netsok:0: ")
    assert message.endswith(" (--check lists 2 more)")


@pytest.mark.parametrize("missing", ["--listen", "--to"])
def test_what_is_missing_is_reported(missing):
    given = {"--listen": LOCAL, "--to": TO}
    del given[missing]
    assert f"{missing} is missing" in refused(*next(iter(given.items())))


def test_more_connections_than_descriptors_are_refused():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > 1_900_000:
        pytest.skip("there is no limit here")
    message = refused("--listen", LOCAL, "--to", TO, "--max-connections", "999999")
    assert "ulimit -Hn" in message
    assert str((hard - 64) // 2) in message


def test_limits_have_defaults():
    limits = settings("--listen", LOCAL, "--to", TO).limits
    assert limits.connections == default_connections()
    assert limits.per_client == max(1, limits.connections // 2)
    assert (limits.handshakes, limits.connect, limits.drain) == (256, 10, 30)
    assert (limits.idle, limits.half_closed, limits.lifetime) == (3600, 600, None)


def test_limits_can_be_lifted():
    limits = settings(
        "--listen", LOCAL, "--to", TO, "--idle-timeout", "none", "--half-closed-timeout", "none",
        "--max-per-client", "none", "--lifetime", "1h",
    ).limits  # fmt: skip
    assert (limits.idle, limits.half_closed, limits.per_client) == (None, None, None)
    assert limits.lifetime == 3600


# Plain text


@pytest.mark.parametrize(
    ("listen", "to", "side"),
    [
        ("netsock:8000", "netsock-tls:example.com:443", "--listen"),
        ("netsock:8000:node=192.0.2.1", "netsock-tls:example.com:443", "--listen"),
        ("tcp:8000", "tls:example.com:443", "--listen"),
        ("netsock-tls:8443:certificates={}", "netsock:example.com:80", "--to"),
        ("netsock-tls:8443:certificates={}", "tcp:192.0.2.1:80", "--to"),
        ("netsock-tls:8443:certificates={}", "netsock:localhost.example.com:80", "--to"),
        ("netsock-tls:8443:certificates={}", "netsock:db.localhost:80", "--to"),
        ("netsock-tls:8443:certificates={}", "tcp:db.localhost:80", "--to"),
        ("netsock-tls:8443:certificates={}", "netsock:localhost.:80", "--to"),
        ("netsock-tls:8443:certificates={}", "netsock:localhost:80:proxy=http\\://h\\:1", "--to"),
        ("netsock-tls:8443:certificates={}", "netsock:127.0.0.1:80:proxy=environment", "--to"),
        ("netsock:8000:node=web.localhost", "netsock-tls:example.com:443", "--listen"),
    ],
)
def test_plain_text_beyond_loopback_is_refused_unless_it_is_wanted(listen, to, side, files):
    arguments = ("--listen", listen.format(files.server), "--to", to)
    message = refused(*arguments)
    assert message.startswith(side)
    assert "--unsafe-plain" in message
    assert settings(*arguments, "--unsafe-plain")


def test_so_is_that_of_a_route(files):
    tls = f"netsock-tls:0:certificates={files.server}"
    message = refused("--listen", tls, "--route", "a.example=netsock:192.0.2.1:80")
    assert message.startswith("--route netsock:192.0.2.1:80: ")


@pytest.mark.parametrize(
    ("listen", "to"),
    [
        ("netsock:8000:node=localhost", "netsock-tls:example.com:443"),
        ("netsock:8000:node=\\:\\:1", "netsock-tls:example.com:443"),
        ("netsock:/tmp/x:aiFamily=unix", "netsock-tls:example.com:443"),
        ("tcp:8000:interface=127.0.0.1", "netsock-tls:example.com:443"),
        ("unix:/tmp/x", "netsock-tls:example.com:443"),
        ("netsock:systemd=web", "netsock-tls:example.com:443"),
        ("netsock-tls:8443:certificates={}", "netsock:127.0.0.2:80"),
        ("netsock-tls:8443:certificates={}", "netsock:/tmp/x:aiFamily=unix"),
        ("netsock-tls:8443:certificates={}", "tcp:localhost:80"),
        ("netsock-tls:8443:certificates={}", "netsock:LocalHost:80"),
        ("netsock-tls:8443:certificates={}", "netsock-tls:example.com:443"),
        ("netsock:8000", "netsock:example.com:80"),
    ],
)
def test_everything_else_is_fine(listen, to, files):
    assert settings("--listen", listen.format(files.server), "--to", to)


# Access


def asking(files, more="yes"):
    return (
        f"netsock-tls:0:node=127.0.0.1:certificates={files.server}"
        f":trustedCertificates={files.authority}:clientCertificateRequired={more}"
    )


@pytest.mark.parametrize("required", ["yes", "no"])
def test_asking_for_certificates_needs_a_rule(files, required):
    arguments = ("--listen", asking(files, required), "--to", TO)
    assert "--allow-all" in refused(*arguments)
    assert settings(*arguments, "--allow-all").access.everyone
    assert settings(*arguments, "--allow-cn", "web", "--allow-ou", "shop").access.restricts


def test_a_rule_needs_a_listener_that_asks(files):
    tls = f"netsock-tls:0:node=127.0.0.1:certificates={files.server}"
    message = refused("--listen", asking(files), "--listen", tls, "--to", TO, "--allow-cn", "web")
    assert message.startswith(f"--listen {tls}:")
    assert "clientCertificateRequired" in message


def test_everybody_and_somebody_are_not_allowed_together(files):
    message = refused("--listen", asking(files), "--to", TO, "--allow-all", "--allow-cn", "web")
    assert message.startswith("--allow-all")


# Others


def test_routes_need_names():
    assert "--route needs netsock-tls:" in refused(
        "--listen", LOCAL, "--route", f"www.example.com={TO}"
    )


def test_routes_alone_are_enough(files):
    tls = f"netsock-tls:0:certificates={files.server}"
    found = settings(
        "--listen", tls, "--route", f"www.example.com={TO}",
        "--route", "www.example.com=netsock:127.0.0.1:81", "--route", f"*.example.com={TO}",
    ).routes  # fmt: skip
    assert found.default == ()
    names = [target.name for target in found.choose("www.example.com")]
    assert names == [TO, "netsock:127.0.0.1:81"]


def test_workers_need_listeners_of_ours():
    message = refused("--listen", "tcp:0:interface=127.0.0.1", "--to", TO, "--workers", "2")
    assert "--workers needs netsock:" in message


def test_workers_cannot_share_an_endpoint_of_another(files):
    listen = f"netsock-tls:endpoint=tcp\\:0:certificates={files.server}"
    message = refused("--listen", listen, "--to", TO, "--workers", "2")
    assert "cannot share what endpoint= listens on" in message


def test_several_endpoints_may_be_given():
    found = settings("--listen", LOCAL, "--listen", LOCAL, "--to", TO, "--to", "tcp:127.0.0.1:1")
    assert len(found.listen) == 2
    assert [target.name for target in found.routes] == [TO, "tcp:127.0.0.1:1"]


# Checking


def test_check_says_that_everything_is_in_order():
    done = check("--listen", LOCAL, "--to", TO)
    assert (done.code, done.errors) == (0, "")
    assert done.output == "Configuration OK: 1 listener, 1 backend.\n"


def test_check_prints_every_error_and_nothing_else():
    done = check(
        "--listen", "netsock-tls:0:certificates=/nowhere.pem", "--to", "netsock:x",
        "--allow-spki", "y",
    )  # fmt: skip
    assert done.code == 1
    assert done.output == ""
    lines = done.errors.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["Error:", "--listen"], ["Error:", "--to"], ["Error:", "--allow-spki"],
    ]  # fmt: skip
    assert "/nowhere.pem" in lines[0]


def test_check_alone_says_what_is_missing():
    done = check()
    assert done.code == 1
    assert "--listen is missing" in done.errors
    assert "--to is missing" in done.errors


def test_a_usage_error_starts_nothing():
    done = run(*RELAY, "--listen", LOCAL, "--to", TO, "--drain", "1")
    assert done.code not in {0, 1}
    assert done.errors.startswith("Error: --drain='1' must be")
    assert TRACEBACK not in done.errors
