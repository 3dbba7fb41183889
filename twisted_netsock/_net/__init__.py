"""
From a name to a connection, and from a listener to a prepared connection.

What leaves this folder is established: looked up, connected, or accepted, its PROXY header
read or sent, its TLS handshake done, all within the time limits of the record. It imports
`_tls`, `_proxy`, `_proxy_protocol`, `_io` and the values at the top of the package.
"""
