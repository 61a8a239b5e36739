"""Accuracy over an endpoint: log-likelihood multiple choice with lm-eval's protocol."""
