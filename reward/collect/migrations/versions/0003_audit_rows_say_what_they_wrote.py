"""An audit row names each row that its step wrote, with a digest of it.

Rows of earlier releases have none; `init` takes stock of what they wrote (reward/collect/integrity/verify.py).
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("audit", sa.Column("written", sa.JSON(), nullable=True))
