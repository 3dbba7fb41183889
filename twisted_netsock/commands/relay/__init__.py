"""
``twist netsock relay``: pass connections from one endpoint to another, within limits.

It imports `commands._common` and the package below the commands; no other command.
"""
