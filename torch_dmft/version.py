"""The version of the package, for all rooms."""

__version__ = "0.2.0"
