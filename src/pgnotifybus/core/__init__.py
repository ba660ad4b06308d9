"""Decisions without I/O: no asyncio, no clock, no socket, no logging. Layer: core.

Everything here is a plain object that is told what happened and answers what that means; who
owns a clock passes the time in. That is why all of it is tested without a server and without
waiting.
"""
