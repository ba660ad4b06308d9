"""The event log: what must not be lost. Layer: log."""
