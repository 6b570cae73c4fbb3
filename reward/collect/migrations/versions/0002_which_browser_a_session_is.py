"""Which browser a session is"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name in ("address", "browser"):
        op.add_column("session", sa.Column(name, sa.String(), nullable=False, server_default=""))
