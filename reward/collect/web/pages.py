"""Pages from templates."""

import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from reward.collect.web.csrf_tokens import masked

FOLDER = Path(__file__).parent.parent  # holds templates/ and static/


@functools.cache
def templates() -> Environment:
    return Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined)


def page(request: Request, template: str, status: int = 200, headers: dict | None = None, **context) -> HTMLResponse:
    """A template with what all of them know: `collection`, its name, `path`, `annotator` (None for a stranger),
    `csrf_token` (then "") and `has_guidelines`, whether there are any for the visitor to read.
    """
    visitor = getattr(request.state, "visitor", None)
    context["collection"] = request.app.state.name
    context["path"] = request.scope["path"]
    context["annotator"] = visitor.annotator if visitor else None
    context["has_guidelines"] = visitor is not None and visitor.has_guidelines
    context["csrf_token"] = masked(visitor.session.csrf_token) if visitor else ""
    return HTMLResponse(templates().get_template(template).render(context), status, headers)
