"""The version, in one place: hatchling reads it from here. Layer: leaf."""

__version__ = "0.1.0"
