"""The qdeploy smoke suite: generated questions, no download, not a public benchmark (docs/smoke-suite.md)."""

from qdeploy.bench.smoke.suite import smoke_suite

__all__ = ["smoke_suite"]
