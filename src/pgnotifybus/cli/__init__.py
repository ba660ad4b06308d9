"""The command line: listen, notify, schema, trigger, log and the demo. Layer: cli, the outermost.

::

    app       the commands and their options; Typer
    secrecy   no password in the process list
    dsn       which server: --dsn, DATABASE_URL, PG*, or the embedded one
    outcomes  errors, exit codes, signals
    output    lines to stdout that never hold up the event loop
    render    one message or event as one line
    listen    pgnotifybus listen
    notify    pgnotifybus notify
    stream    pgnotifybus notify CHANNEL -
    stdin     what comes on stdin, without holding up the event loop
    lines     from bytes to lines and their keys
    sent      what has become of lines
    progress  how far it is, on a terminal
    schema    pgnotifybus schema
    trigger   pgnotifybus trigger
    log       pgnotifybus log
    options   options that commands share
    demo      pgnotifybus demo
"""
