"""Relays as processes of their own: ours, and those of Debian's packages."""

from __future__ import annotations

from pathlib import Path

from .processes import find, free_port, python
from .task import HOST

COMMANDS = {"haproxy": "haproxy", "nginx": "nginx", "stunnel": "stunnel", "socat": "socat"}
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def missing(name: str) -> str | None:
    """Say why the relay *name* cannot take part, or return `None`."""
    if name in COMMANDS and find(COMMANDS[name]) is None:
        return f"{COMMANDS[name]} is not installed"
    if name == "nginx" and not STREAM_MODULE.exists():
        return "nginx has no stream module (libnginx-mod-stream)"
    return None


def command(
    name: str, directory: Path, backend: int, certificate: Path | None, more: tuple[str, ...] = ()
) -> tuple[int, list[str]]:
    """Return the port of a relay to *backend*, and the words that start it."""
    port = free_port()
    path = directory / f"{name}-{port}.conf"
    tls = certificate is not None
    if name == "netsock":
        listen = f"netsock{'-tls' if tls else ''}:{port}:node={HOST}:backlog=1024"
        listen += f":certificates={certificate}" if tls else ""
        twist = python("twisted", "--reactor=epoll", "--log-level=warn", "netsock", "relay")
        return port, [*twist, "--listen", listen, "--to", f"netsock:{HOST}:{backend}", *more]
    if name == "haproxy":
        path.write_text(
            "global\n  nbthread 1\n  maxconn 4096\n"
            "defaults\n  mode tcp\n"
            "  timeout connect 10s\n  timeout client 1m\n  timeout server 1m\n"
            f"listen relay\n  bind {HOST}:{port} {f'ssl crt {certificate}' if tls else ''}\n"
            f"  server peer {HOST}:{backend}\n"
        )
        return port, [str(find("haproxy")), "-f", str(path), "-db"]
    if name == "nginx":
        ssl = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};" if tls else ""
        path.write_text(
            f"load_module {STREAM_MODULE}; daemon off; master_process off;\n"
            f"pid {path}.pid; error_log stderr error; events {{ worker_connections 4096; }}\n"
            f"stream {{ server {{ listen {HOST}:{port}{' ssl' if tls else ''} backlog=1024;\n"
            f"  {ssl} proxy_buffer_size 64k; proxy_pass {HOST}:{backend}; }} }}\n"
        )
        return port, [str(find("nginx")), "-c", str(path), "-e", "stderr"]
    if name == "stunnel":
        path.write_text(
            "foreground = quiet\npid =\ndebug = err\n"
            "socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
            f"[relay]\naccept = {HOST}:{port}\nconnect = {HOST}:{backend}\ncert = {certificate}\n"
        )
        return port, [str(find("stunnel")), str(path)]
    listen = f"TCP-LISTEN:{port},bind={HOST},reuseaddr,fork,nodelay,backlog=1024"
    return port, [str(find("socat")), "-b65536", listen, f"TCP:{HOST}:{backend},nodelay"]


def web_command(name: str, directory: Path, certificate: Path) -> tuple[int, list[str]]:
    """Return the port of ``twist web`` on our endpoint or Twisted's, and what starts it."""
    port = free_port()
    (directory / "pages").mkdir(exist_ok=True)
    (directory / "pages" / "file").write_bytes(bytes(10_000))
    if name == "netsock-protocol":
        listen = f"netsock-tls:{port}:node={HOST}:certificates={certificate}"
    else:
        listen = f"ssl:{port}:interface={HOST}:privateKey={certificate}"
    words = ("twisted", "--reactor=epoll", "--log-level=warn", "web", "--notracebacks")
    return port, [*python(*words), "--path", str(directory / "pages"), "--listen", listen]
