"""docs/API.md tells of every route of the API, and of no other."""

import dataclasses
import re
from pathlib import Path

from fastapi.routing import iter_route_contexts

from reward.collect.ranking.submissions import Submission
from reward.collect.web.app import create_app

DOCUMENT = (Path(__file__).parents[3] / "docs" / "API.md").read_text(encoding="utf-8")


def test_the_routes_in_the_document_are_those_of_the_application(database):
    routes = iter_route_contexts(create_app(database).routes)
    served = {f"{method} {route.path}" for route in routes for method in route.methods or ()}
    told = re.findall(r"^\| `([A-Z]+ /\S+)` \|", DOCUMENT, re.MULTILINE)
    assert sorted(told) == sorted(route for route in served if " /api/" in route)


def test_the_members_of_a_submission_in_the_document_are_those_that_are_taken():
    told = re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert told == [field.name for field in dataclasses.fields(Submission)]
