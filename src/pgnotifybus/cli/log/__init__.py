"""`pgnotifybus log`: append to the event log, follow it, and look after it. Layer: cli.

::

    commands   append, tail, stats and prune, and their options
    consumers  pgnotifybus log consumers
    append     appends one event
    stream     appends lines of stdin
    options    options that these commands share
    account    what has become of those lines
    tail       prints events as they come
    places     where to begin, and what to do when one cannot begin there
    show       events, gaps and tables as lines
"""
