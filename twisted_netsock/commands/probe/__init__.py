"""
``netsock probe``: connect to each address of a host, and report its TLS and certificates.

It imports `commands._common` and the package below the commands; no other command.
"""
