"""Load generation against an OpenAI-compatible endpoint (definitions: docs/metrics.md)."""

from qdeploy.bench.load.run import Measurement, measure, run_load, save
from qdeploy.bench.load.spec import LoadSpec

__all__ = ["LoadSpec", "Measurement", "measure", "run_load", "save"]
