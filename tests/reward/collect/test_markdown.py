"""Text of others as HTML that can do nothing."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.collect.web.markdown import guidelines, untrusted

TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
INERT = TABLE | {"p", "br", "hr", "h4", "h5", "h6", "strong", "em", "code", "pre", "blockquote", "ul", "ol", "li"}


def tags(html: str) -> set[str]:
    return {name.lower() for name in re.findall(r"<\s*/?\s*([^\s/>]+)", html)}


def test_markdown_is_formatted():
    assert untrusted("**a** `b`\n\n- c") == "<p><strong>a</strong> <code>b</code></p>\n<ul>\n<li>c</li>\n</ul>\n"
    assert tags(untrusted("|a|\n|-|\n|b|")) == TABLE


def test_headings_are_below_those_of_the_page():
    assert untrusted("# a\n\n###### b") == "<h4>a</h4>\n<h6>b</h6>\n"


@pytest.mark.parametrize("part", ["[", "![", "[a](b)", "- \n", "<http://a.b>", "[a]("])
def test_no_text_takes_long_to_format(part):
    began = time.process_time()
    untrusted(part * (400_000 // len(part)))
    untrusted(part * (50_000 // len(part)))
    assert time.process_time() - began < 20  # seconds; 1 on an idle machine, minutes where it grew with the square


def test_a_text_that_is_too_long_to_format_is_shown_as_it_is():
    assert untrusted("*a* <b>" + "x" * 50_000) == f"<pre>*a* &lt;b&gt;{'x' * 50_000}</pre>"


def test_html_is_shown_as_it_was_written():
    assert untrusted("<b>x</b>") == "<p>&lt;b&gt;x&lt;/b&gt;</p>\n"


def test_links_and_images_are_text_that_names_their_address():
    assert untrusted("[a](http://x.test/y)") == "<p>a (http://x.test/y)</p>\n"
    assert untrusted("![a *b*](http://x.test/y.png)") == "<p>[image: a b (http://x.test/y.png)]</p>\n"
    assert untrusted("<http://x.test/>") == "<p>http://x.test/</p>\n"


def test_links_in_guidelines_tell_nothing_of_the_page():
    assert 'href="http://x.test/"' in guidelines("[a](http://x.test/)")
    assert 'rel="noopener noreferrer nofollow"' in guidelines("[a](http://x.test/)")


@pytest.mark.parametrize("render", [untrusted, guidelines])
@pytest.mark.parametrize("scheme", ["javascript:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd"])
def test_no_other_scheme_is_linked(render, scheme):
    assert "href" not in render(f"[a]({scheme})") and "href" not in render(f"<{scheme}>")


PIECES = """
<script> </p> <img\tsrc=x\tonerror=y> <!-- &lt; style= javascript: http://x.test ![ ]( ) [ ] < > " ' ` | - # * a : \\
"""
SOUP = st.lists(st.sampled_from([*PIECES.split(" "), "\n", " "]), max_size=25).map("".join)


@settings(max_examples=150, deadline=None)
@given(SOUP | st.text(max_size=60))
def test_only_inert_tags_without_attributes_come_out(text):
    html = untrusted(text)
    assert tags(html) <= INERT
    assert not re.search(r"<(?!ol start=)[^>]*=", html)


@pytest.mark.parametrize("render, most", [(untrusted, 50_000), (guidelines, 100_000)])
def test_a_text_of_hostile_length_is_shown_as_it_is(render, most):
    text = "**a** " * (most // 6 + 1)
    assert render(text) == f"<pre>{text}</pre>"
    assert render(text[:most]).startswith("<p><strong>a</strong>")


@pytest.mark.parametrize("render", [untrusted, guidelines])
def test_a_text_that_is_shown_again_is_not_formatted_again(render):
    text = f"**{render.__name__}**"
    assert render(text) is render(text)
