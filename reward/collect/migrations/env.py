"""What Alembic runs: the migrations, on the connection that reward.collect.store.database hands it."""

from alembic import context

from reward.collect.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
