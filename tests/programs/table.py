"""Which programs are run, in which versions, and in which ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WAYS: Final = ("plain", "TLS", "TLS over tcp:")
"""By ``netsock:``, ``netsock-tls:`` and ``netsock-tls:`` with an inner endpoint, on both sides."""

PROXIES: Final = ("microsocks", "Dante", "tinyproxy")
"""SOCKS5 with a password, SOCKS5 without, and CONNECT with one."""

ENVIRONMENTS: Final = {
    "programs": (
        "aiohttp==3.14.5", "aiosmtplib==5.1.3", "autobahn==26.10.2", "bcrypt==5.0.0",
        "buildbot==4.3.0", "buildbot-worker==4.3.0", "buildbot-www==4.3.0", "channels==4.3.2",
        "daphne==4.2.3", "dnspython==2.9.2", "foolscap==24.9.0", "httpx==0.28.1",
        "klein==24.8.0", "ldap3==2.9.1", "ldaptor==21.2.0", "magic-wormhole==0.24.0",
        "magic-wormhole-mailbox-server==0.8.0", "magic-wormhole-transit-relay==0.5.0",
        "paho-mqtt==2.2.0", "paramiko==5.1.0", "pg8000==1.31.6", "pika==1.4.4",
        "pyftpdlib==2.2.0", "pymysql==1.2.4", "redis==8.1.0", "requests==2.34.2",
        "scrapy==2.19.0", "treq==26.7.0", "twisted[conch,http2]==26.10.0", "txredisapi==1.6.0",
        "urllib3==2.8.0", "websockets==17.4",
    ),
    "relay": ("amqtt==0.12.1", "grpcio==1.85.3", "paho-mqtt==2.2.0"),
    "autobahn-23.6": ("autobahn==23.6.2", "setuptools<81"),
    "autobahn-24.4": ("autobahn==24.4.2", "setuptools<81"),
    "autobahn-25.12": ("autobahn==25.12.2",),
}  # fmt: skip
"""What is installed, pinned. Versions that do not go together have environments of their own."""


@dataclass(frozen=True)
class Program:
    """
    One program, or several that are run together.

    Attributes:
        name: As the table shows it.
        script: The file here that runs it, without ``.py``.
        shown: The distribution, or the program, whose version is shown.
        ways: What the script takes as its argument.
        environments: Where it runs.
        needs: Distributions beside *shown*, where that is one.
    """

    name: str
    script: str
    shown: str
    ways: tuple[str, ...] = WAYS
    environments: tuple[str, ...] = ("programs",)
    needs: tuple[str, ...] = ()


PROGRAMS: Final = (
    Program(
        "Autobahn, WebSocket", "autobahn_echo", "autobahn",
        environments=tuple(name for name in ENVIRONMENTS if name != "relay"),
    ),
    Program("websockets, with Autobahn", "websockets_client", "websockets", needs=("autobahn",)),
    Program("Daphne, Channels, Django", "daphne_channels", "daphne", needs=("channels", "treq")),
    Program("Klein, and treq", "klein_app", "klein", needs=("treq",)),
    Program("Scrapy", "scrapy_spider", "scrapy", ("HTTP/1.1", "HTTP/2", "CONNECT")),
    Program("twisted.web, and treq", "twist_web", "treq"),
    Program("Buildbot", "buildbot_build", "buildbot", needs=("buildbot-worker", "treq")),
    Program("Foolscap", "foolscap_tubs", "foolscap", ("TLS of its own",)),
    Program(
        "magic-wormhole, and its mailbox", "wormhole_mailbox", "magic-wormhole", WAYS[:2],
        needs=("magic-wormhole-mailbox-server",),
    ),
    Program("transit relay of magic-wormhole", "transit_relay", "magic-wormhole-transit-relay"),
    Program("ldaptor", "ldaptor_tree", "ldaptor"),
    Program(
        "Redis, by redis-py and txredisapi", "redis_databases", "redis",
        (*WAYS, "redis-py, context of ours"), needs=("txredisapi",)
    ),
    Program(
        "PostgreSQL, and pg8000", "postgresql_server", "pg8000", (*WAYS, "TLS, context of ours")
    ),
    Program("MariaDB, and PyMySQL", "mariadb_server", "pymysql", (*WAYS, "TLS, context of ours")),
    Program("Mosquitto, and paho", "mosquitto_broker", "paho-mqtt", ("TLS, context of ours",)),
    Program("pyftpdlib, and FTP_TLS", "pyftpdlib_server", "pyftpdlib", ("TLS, context of ours",)),
    Program("RabbitMQ, and pika's Twisted adapter", "rabbitmq_broker", "pika"),
    Program(
        "OpenLDAP, and ldap3 and ldaptor", "slapd_directory", "ldap3",
        ("StartTLS, and TLS", "StartTLS, and TLS, context of ours"), needs=("ldaptor",),
    ),
    Program("OpenSSH, and paramiko", "openssh_server", "paramiko"),
    Program("conch, and OpenSSH", "conch_ssh", "twisted", needs=("bcrypt",)),
    Program(
        "twisted.mail, and smtplib, poplib, imaplib", "mail_servers", "twisted",
        (
            "SMTP, STARTTLS", "SMTP, TLS", "SMTP, socket of ours", "POP3, TLS",
            "POP3, socket of ours", "IMAP4, STARTTLS", "IMAP4, socket of ours",
            "SMTP, STARTTLS, context of ours", "SMTP, TLS, context of ours",
            "POP3, TLS, context of ours", "IMAP4, STARTTLS, context of ours",
        ),
    ),
    Program(
        "twisted.mail, and aiosmtplib", "mail_servers", "aiosmtplib",
        ("aiosmtplib, STARTTLS", "aiosmtplib, STARTTLS, context of ours"),
    ),
    Program("twisted.words, IRC", "words_irc", "twisted"),
    Program("twisted.names, and dnspython", "names_dns", "dnspython"),
    Program("Perspective Broker", "perspective_broker", "twisted"),
    Program("AMP", "amp_calls", "twisted"),
    Program(
        "treq, Scrapy and requests, through a proxy", "through_proxies", "scrapy", PROXIES,
        needs=("treq", "requests"),
    ),
    Program(
        "redis-py over TLS, and psql, relayed through a proxy", "databases_through_proxies",
        "redis", PROXIES,
    ),
    Program("gRPC, behind the relay", "relay_backends", "grpcio", ("gRPC",), ("relay",)),
    Program(
        "paho and amqtt, behind the relay", "relay_backends", "paho-mqtt", ("MQTT",), ("relay",),
        needs=("amqtt",),
    ),
    Program("certbot, and pebble", "certbot_live", "certbot", ("issued, renewed under load",)),
    Program("nginx, and treq and curl", "nginx_server", "nginx", ("TLS, and through the relay",)),
    *(
        Program(f"twisted.web, and {shown}", "http_clients", shown, (name,))
        for name, shown in (
            ("curl", "curl"),
            ("curl HTTP/2", "curl"),
            ("wget", "wget"),
            ("http.client, socket of ours", "python"),
            ("urllib", "python"),
            ("urllib3", "urllib3"),
            ("requests", "requests"),
            ("httpx", "httpx"),
            ("aiohttp", "aiohttp"),
            ("http.client, context of ours", "python"),
            ("urllib, context of ours", "python"),
            ("urllib3, context of ours", "urllib3"),
            ("requests, context of ours", "requests"),
            ("httpx, context of ours", "httpx"),
            ("httpx async, context of ours", "httpx"),
            ("aiohttp, context of ours", "aiohttp"),
        )
    ),
)  # fmt: skip
