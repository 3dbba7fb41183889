"""The ports and files of blocking sockets are real `io` objects."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import shutil
import socket
from datetime import timedelta
from typing import Any

import pytest

from tests.support.threads import Background, plain_pair, threaded, tls_pair, waiting
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketPortError,
    SocketReadTimeoutError,
    TLSTruncatedError,
    blocking,
)

pytestmark = pytest.mark.long

SHORT = timedelta(milliseconds=30)


@pytest.fixture(params=["plain", "TLS"])
def pair(request: pytest.FixtureRequest, authority: Any) -> Any:
    """Make two connected sockets."""
    return plain_pair if request.param == "plain" else lambda: tls_pair(authority)


@threaded
def test_ports_are_the_same_objects_at_every_access(pair):
    with pair() as (one, _):
        assert type(one.input_port) is io.BufferedReader
        assert type(one.output_port) is io.BufferedWriter
        assert one.input_port is one.input_port
        assert one.output_port is one.output_port
        assert one.input_port.fileno() == one.fileno()
        assert one.input_port.readable()
        assert not one.input_port.seekable()
        assert one.output_port.writable()
        assert "RawPort" in repr(one.input_port.raw)


@threaded
def test_lines_and_blocks_and_the_rest(pair):
    with pair() as (one, other):
        one.output_port.write(b"first\nsecond\n" + b"x" * 10 + b"rest")
        one.output_port.flush()
        one.shutdown(socket.SHUT_WR)
        port = other.input_port
        assert port.readline() == b"first\n"
        assert next(iter(port)) == b"second\n"
        assert port.read(10) == b"x" * 10
        assert port.peek(1)[:1] == b"r"
        assert port.read() == b"rest"
        assert port.read() == b""
        assert list(port) == []


@threaded
def test_what_the_standard_library_writes_it_reads(pair):
    data = os.urandom(1_000_000)
    rows = [["name", "number"], ["one, or two", "1"]]
    with pair() as (one, other):

        def write() -> None:
            text = io.TextIOWrapper(one.output_port, "utf-8", newline="", write_through=True)
            csv.writer(text).writerows(rows)
            text.write(json.dumps({"käse": [1, 2]}) + "\n")
            text.detach()
            shutil.copyfileobj(io.BytesIO(data), one.output_port)
            one.output_port.flush()
            one.shutdown(socket.SHUT_WR)

        writing = Background(write)
        port = other.input_port
        lines = [port.readline().decode() for _ in range(2)]
        assert list(csv.reader(lines)) == rows
        assert json.loads(port.readline()) == {"käse": [1, 2]}
        copied = io.BytesIO()
        shutil.copyfileobj(port, copied)
        assert copied.getvalue() == data
        writing.result()


@threaded
def test_bytes_unread_in_the_port_come_first(pair):
    with pair() as (one, other):
        one.sendall(b"line\nmore")
        assert other.input_port.readline() == b"line\n"
        for call in (lambda: other.recv(4), lambda: other.recv_into(bytearray(4))):
            with pytest.raises(SocketPortError) as caught:
                call()
            assert caught.value.port is other.input_port
        assert other.input_port.read(4) == b"more"
        one.sendall(b"now")
        assert other.recv(10) == b"now"


@threaded
def test_a_send_comes_after_what_the_port_holds(pair):
    with pair() as (one, other):
        one.output_port.write(b"written, ")
        one.sendall(b"sent")
        one.output_port.write(b", written")
        one.shutdown(socket.SHUT_WR)
        assert other.input_port.read() == b"written, sent, written"


@threaded
def test_closing_sends_what_the_port_holds_and_closes_both(pair):
    with pair() as (one, other):
        ports = one.input_port, one.output_port
        one.output_port.write(b"held")
        one.close()
        assert [port.closed for port in ports] == [True, True]
        assert other.input_port.read() == b"held"


@threaded
def test_closing_with_a_peer_that_takes_nothing_resets(pair):
    with pair() as (one, other):
        one.write_timeout = timedelta(milliseconds=100)
        one.settimeout(0.1)
        # The kernel may find room again after it had none, so one write is not enough.
        with pytest.raises(TimeoutError):
            while True:
                one.output_port.write(bytes(200_000))
                one.output_port.flush()
        one.close()
        with pytest.raises((SocketConnectionLostError, TLSTruncatedError)):
            while other.recv(65536):
                pass


@threaded
def test_closing_or_dropping_a_port_leaves_the_socket_open(pair):
    with pair() as (one, other):
        one.output_port.write(b"written")
        one.output_port.close()
        one.input_port.close()
        gc.collect()
        assert not one.closed
        assert other.recv(10) == b"written"
        one.sendall(b"still")
        assert other.recv(10) == b"still"
        other.sendall(b"and back")
        assert one.recv(10) == b"and back"
        with pytest.raises(ValueError, match="closed"):
            one.input_port.read(1)


@threaded
def test_a_read_that_times_out_leaves_the_port_unusable_and_the_socket_usable(pair):
    with pair() as (one, other):
        one.sendall(b"abc")
        other.read_timeout = SHORT
        with pytest.raises(SocketReadTimeoutError):
            other.input_port.read(5)
        with pytest.raises(SocketPortError, match="cut short"):
            other.input_port.read(1)
        one.sendall(b"x")
        assert other.recv(1) == b"x"


@threaded
def test_a_write_that_times_out_on_a_plain_socket_loses_and_repeats_nothing():
    with plain_pair() as (one, other):
        one.write_timeout = timedelta(milliseconds=50)
        data = os.urandom(60_000)
        written = 0
        with pytest.raises(TimeoutError):
            while True:
                one.output_port.write(data)
                written += len(data)
        reading = Background(other.input_port.read)
        one.write_timeout = None
        one.output_port.flush()
        one.close()
        received = reading.result()
        assert received[:written] == data * (written // len(data))
        assert data.startswith(received[written:])


@threaded
def test_a_port_of_a_socket_that_does_not_wait_gives_none(pair):
    with pair() as (one, other):
        one.setblocking(False)
        assert one.input_port.read(1) is None
        other.sendall(b"x")
        one.setblocking(True)
        assert one.input_port.read(1) == b"x"


@threaded
def test_closing_the_socket_wakes_who_reads_the_port(pair):
    with pair() as (one, _):
        reading = waiting(lambda: one.input_port.read(1), one)
        one.close()
        assert isinstance(reading.error(), SocketClosedError | ValueError)


@threaded
def test_a_receive_while_another_thread_reads_the_port_is_refused(pair):
    with pair() as (one, other):
        reading = waiting(one.input_port.readline, one)
        with pytest.raises(SocketBusyError):
            one.recv(1)
        other.sendall(b"line\n")
        assert reading.result() == b"line\n"


# makefile


@threaded
def test_a_file_keeps_the_connection_when_the_socket_is_closed(pair):
    with pair() as (one, other):
        file = one.makefile("rwb")
        one.close()
        assert one.closed
        with pytest.raises(SocketClosedError):
            one.recv(1)
        file.write(b"ping")
        file.flush()
        assert other.recv(10) == b"ping"
        other.sendall(b"pong\n")
        assert file.readline() == b"pong\n"
        file.close()
        assert other.recv(1) == b""


@pytest.mark.parametrize(
    ("mode", "arguments", "kind"),
    [
        ("rb", {}, io.BufferedReader),
        ("wb", {}, io.BufferedWriter),
        ("rwb", {}, io.BufferedRWPair),
        ("r", {"encoding": "utf-8"}, io.TextIOWrapper),
        ("rw", {"encoding": "utf-8", "newline": ""}, io.TextIOWrapper),
        ("rb", {"buffering": 0}, io.RawIOBase),
    ],
)
@threaded
def test_makefile_makes_what_the_standard_librarys_does(mode, arguments, kind):
    with plain_pair() as (one, _):
        theirs, peer = socket.socketpair()
        with (
            theirs,
            peer,
            one.makefile(mode, **arguments) as file,
            theirs.makefile(mode, **arguments) as model,
        ):
            assert isinstance(file, kind)
            assert isinstance(model, kind)
            assert (file.readable(), file.writable()) == (model.readable(), model.writable())
            assert getattr(file, "mode", "") == getattr(model, "mode", "")


@threaded
def test_makefile_refuses_what_is_no_mode():
    with plain_pair() as (one, _):
        for mode in ("a", "b", "", "rt"):
            with pytest.raises(ValueError, match="mode"):
                one.makefile(mode)
        with pytest.raises(ValueError, match="buffering"):
            one.makefile("r", 0)


@threaded
def test_net_io():
    with blocking.make_server_socket("127.0.0.1", 0) as server:
        serving = Background(lambda: server.serve(lambda it: it.sendall(it.input_port.read(1000))))
        port = server.getsockname().port

        def proc(reader: io.BufferedReader, writer: io.BufferedWriter) -> bytes:
            writer.write(b"x" * 1000)
            writer.flush()
            return reader.read()

        assert blocking.with_net_io("127.0.0.1", port, proc) == b"x" * 1000
        opened = blocking.open_net_io("127.0.0.1", port)
        with opened.socket:
            assert opened.input_port is opened.socket.input_port
            assert opened.output_port is opened.socket.output_port
        with pytest.raises(LookupError):
            blocking.with_net_io("127.0.0.1", port, lambda *_: {}["none"])
        server.close()
        serving.result()
