"""The campaign: the whole line for several variants of one model, one served at a time."""

from qdeploy.bench.campaign.run import run_campaign

__all__ = ["run_campaign"]
