"""Markdown as HTML that can do nothing: what models and annotators wrote is never trusted.

Two walls: the renderer lets no HTML of the text's own through (html=False), and the sanitiser nothing but the listed
tags, none of which loads, links, or runs anything.
"""

import functools

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape

TEXT_TAGS = {"p", "br", "hr", "h4", "h5", "h6", "strong", "em", "code", "pre", "blockquote", "ul", "ol", "li"}
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
TAGS = TEXT_TAGS | TABLE_TAGS
ATTRIBUTES = {"ol": {"start"}}
MAX_FORMATTED = 50_000  # characters: text that is made to, e.g. of [ alone, takes a time that grows with its square
MAX_GUIDELINES = 100_000  # the lead's own, and made once
LINK_SCHEMES = {"http", "https", "mailto"}


@functools.lru_cache(maxsize=128)  # a page is shown again at each step; the longest text takes a second
def untrusted(text: str) -> Markup:
    """What a model or an annotator wrote. Links and images are text that names their address.

    A link could take the reader to a page of the text's author, who would learn who ranks and from where.
    A text that is too long to format stays as it is.
    """
    if len(text) > MAX_FORMATTED:
        return Markup("<pre>{}</pre>").format(text)
    return Markup(nh3.clean(_UNTRUSTED.render(text), tags=TAGS, attributes=ATTRIBUTES, url_schemes=set()))


@functools.lru_cache(maxsize=32)  # they stand on each page of an annotator
def guidelines(text: str) -> Markup:
    """What the lead wrote: as untrusted(), with links, which open beside the page and do not tell where from."""
    if len(text) > MAX_GUIDELINES:
        return Markup("<pre>{}</pre>").format(text)
    html = nh3.clean(
        _GUIDELINES.render(text),
        tags=TAGS | {"a"},
        attributes=ATTRIBUTES | {"a": {"href"}},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        url_schemes=LINK_SCHEMES,
        link_rel="noopener noreferrer nofollow",
    )
    return Markup(html)


class _Inert(RendererHTML):
    """Images as text; headings below those of the page, so that its outline stays its own."""

    def image(self, tokens: list[Token], index: int, options, env) -> str:
        description = self.renderInlineAsText(tokens[index].children, options, env)
        return str(escape(f"[image: {description} ({tokens[index].attrGet('src')})]"))

    def heading_open(self, tokens: list[Token], index: int, options, env) -> str:
        return f"<{_lower(tokens[index].tag)}>"

    def heading_close(self, tokens: list[Token], index: int, options, env) -> str:
        return f"</{_lower(tokens[index].tag)}>\n"


class _WithoutLinks(_Inert):
    def link_open(self, tokens: list[Token], index: int, options, env) -> str:
        return ""

    def link_close(self, tokens: list[Token], index: int, options, env) -> str:
        opening = next(tokens[i] for i in range(index - 1, -1, -1) if tokens[i].type == "link_open")
        return "" if opening.info == "auto" else str(escape(f" ({opening.attrGet('href')})"))


def _lower(heading: str) -> str:
    return f"h{min(6, int(heading[1]) + 3)}"


_UNTRUSTED = MarkdownIt("commonmark", {"html": False}, renderer_cls=_WithoutLinks).enable("table")
_GUIDELINES = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Inert).enable("table")
