"""Links: one server connection each, from connect to loss. Layer: links.

`base` is the protocol; `psycopg` and `asyncpg` speak it and do not know each other; `sources`
turns what the user passed (a DSN, a pool, an engine, a callable) into something that connects.
"""
