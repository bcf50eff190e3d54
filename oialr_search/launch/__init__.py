"""One `mpiexec` of a search: its ranks, their islands and what they breed, its end and resuming."""
