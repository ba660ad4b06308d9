"""Real faults against a live bus: each is noticed, told in its place, and mended.

::

    account     what was sent, and what each receiver was given or told of it
    world       the server, the network, the bus and a writer that never stops
    cases       the faults
    trial       one fault against one world, and what is measured
    table       the results, for docs/topics/reliability.md
    soak        faults at random against all of it, for minutes
    __main__    `make chaos`, `make soak`
"""
