"""A collection that is made up is one that the server could have written."""

from collections import Counter

import pytest
from sqlalchemy import func, select

from reward.collect.integrity.verify import require_whole
from reward.collect.made_up import make_collection
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation, Item


@pytest.mark.slow
def test_its_chain_holds_and_it_has_all_that_a_collection_has(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/collect.db")
    make_collection(database, num_items=200, num_rankings=300, num_annotators=5)
    with database.read() as session:
        require_whole(session)
        kinds = Counter(session.scalars(select(Item.kind)))
        assert {"normal", "gold", "repeat"} <= set(kinds)
        assert 290 <= session.scalar(select(func.count(Annotation.id))) <= 310
        assert session.scalar(select(func.count(Item.id)).where(Item.comparison.is_not(None))) == 4
    database.close()
