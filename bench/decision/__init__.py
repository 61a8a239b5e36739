"""Which variant of a campaign to deploy: a pure function of its plan and of what its runs left."""
