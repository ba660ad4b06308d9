"""Statements on connections of any kind: our own beside the listener's, and the caller's.
Layer: database.
"""
