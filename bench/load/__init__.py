"""Load generation against an OpenAI-compatible endpoint (definitions: docs/metrics.md)."""
