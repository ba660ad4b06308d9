"""What is wrong with a server, or soon will be, for who listens to it.

::

    finding     one thing that was found: what, why it matters, what to do
    facts       questions to the server, one by one; a failure of one is a fact too
    rules       from facts to findings; no I/O
    doctor      all of it, and a notification that must arrive
    glance      what changes, for who watches it
"""
