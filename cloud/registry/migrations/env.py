"""Run by Alembic: migrate in the transaction that `harmony.cloud.registry.database` began."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
