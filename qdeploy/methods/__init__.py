"""Methods that choose codes: one algorithm a file, each a config dataclass and one function."""
