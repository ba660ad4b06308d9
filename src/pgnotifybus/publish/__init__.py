"""Sending: one at a time, in the caller's transaction, or in batches. Layer: publish."""
