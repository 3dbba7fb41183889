"""
What the commands share: options and targets, standard streams, exit statuses, services.

It imports the package below the commands, and nothing of a single command.
"""
