"""Runs the migrations on the connection that `roles.api.schema` hands over."""

from alembic import context

from roles.api.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite"
)
context.run_migrations()
