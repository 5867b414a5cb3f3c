"""A page is well-formed, needs nothing from elsewhere, and shows what it was given as text."""

from xml.etree import ElementTree

from ptl_fast.base import html_page

NASTY = "<script>alert('x')</script> & \"</body>"


def parsed(page: str) -> ElementTree.Element:
    """The page as XML: the strictest reader of HTML there is."""
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


def test_what_is_given_is_text_and_no_markup() -> None:
    page = html_page.page(
        NASTY,
        [
            html_page.section(
                NASTY,
                html_page.paragraphs([NASTY]),
                html_page.table([[NASTY, "b"], ["1", NASTY]]),
                html_page.details(NASTY, html_page.preformatted(NASTY)),
                html_page.cards([html_page.card(NASTY, "<svg/>", NASTY)]),
            )
        ],
    )
    root = parsed(page)
    assert not list(root.iter("script"))
    texts = [text for text in root.itertext() if text == NASTY]
    assert len(texts) == 10


def test_a_page_is_readable_on_a_telephone_and_in_the_dark() -> None:
    page = html_page.page("t", [])
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme:dark" in page


def test_an_empty_section_is_left_out() -> None:
    assert html_page.section("t", "", html_page.cards(["", ""])) == ""
    assert html_page.paragraphs([]) == ""
