"""The search: breeding, launching, storing and reporting; never imports torch."""
