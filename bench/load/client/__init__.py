"""The HTTP client, its processes, and what they can do."""
