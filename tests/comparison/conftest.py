"""The comparison that the report shows, for the tests of its table."""

from tests.report.conftest import comparison

__all__ = ["comparison"]
