"""qdeploy: from a 16-bit checkpoint to a quantized model that is served, with the evidence."""

__version__ = "0.1.0"
