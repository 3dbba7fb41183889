"""
Through a proxy: the dialogues of SOCKS5 and of CONNECT, and the stage that holds one.

A dialogue takes the proxy's answer from a descriptor to the byte, and what follows stays with
the kernel. This folder imports `_io` and the values at the top of the package.
"""
