"""Which individual to try next: one file an engine."""
