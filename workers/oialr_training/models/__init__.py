"""Architectures; they know nothing of OIALR."""
