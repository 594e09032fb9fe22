"""The comparison that the tests of the report read back."""

from tests.report.conftest import comparison

__all__ = ["comparison"]
