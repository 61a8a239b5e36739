"""Runs in MLflow, for those who have it."""

from qdeploy.bench.tracking.tracker import Tracker

__all__ = ["Tracker"]
