"""Programs of others over our strings and contexts, each with a real client; see ``run.py``."""
