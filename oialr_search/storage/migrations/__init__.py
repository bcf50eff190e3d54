"""Alembic's folder: how the schema came to be, shipped with the package."""
