"""Campaign folders, as the tests of the report make them."""

from tests.bench.report.conftest import make_campaign

__all__ = ["make_campaign"]
