"""Links: one server connection each, from connect to loss. Layer: links.

`base` is the protocol; `psycopg` and `asyncpg` speak it and do not know each other; `inbox` is what
both hand on from. `sources` chooses which of the `connectors` fits what the user passed, and
`failures` says why one could not connect.
"""
