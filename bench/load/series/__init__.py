"""Several loads on one endpoint."""
