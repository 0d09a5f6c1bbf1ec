"""One dataclass a command: its fields are the options, `run` does the work. Heavy imports stay inside `run`."""
