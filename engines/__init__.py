"""Engines that serve models, each in an environment of its own, spoken to over the OpenAI HTTP API."""
