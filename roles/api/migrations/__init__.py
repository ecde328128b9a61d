"""Alembic migrations of the API's database, applied at start."""
