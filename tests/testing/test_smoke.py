from twisted_netsock.testing import connected_pair


async def test_pair():
    a, b = connected_pair()
    await a.sendall(b"hello")
    assert await b.recv(10) == b"hello"
    await a.close()
    assert await b.recv(10) == b""
    await b.close()
