"""The training side: one process trains one evaluation, knowing nothing of MPI or databases."""
