"""Run by Alembic: migrates on the connection, and in the transaction, that `engine` hands over."""

from alembic import context

from oialr_search.storage.schema import METADATA, REVISION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=REVISION_TABLE,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
