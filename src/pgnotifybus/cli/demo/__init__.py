"""`pgnotifybus demo`: watch it work, on real PostgreSQL. Layer: cli.

::

    shop        a schema with an orders table, whose trigger notifies; dropped at the end
    account     what one subscriber got, and how the rest is explained
    subscriber  reads, accounts, and re-reads the table where a gap says so
    show        the writer, the one who kills connections, and the orderly end
    story       what happened, in the order in which it did
    view        the live picture
    summary     the numbers at the end, for people and as JSON
"""
