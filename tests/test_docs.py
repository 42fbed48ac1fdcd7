"""The documentation: its links lead somewhere, and every page is found from README.md."""

import re
from pathlib import Path

import pytest

from tests.project import ROOT

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/*.md"), *ROOT.glob("infra/**/README.md")]


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of each link to a file, outside code blocks."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    return re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)#?([^)\s]*)\)", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_each_page_is_linked_from_the_readme_or_from_a_page_that_is():
    found, new = set(), {ROOT / "README.md"}
    while new:
        found |= new
        paths = {page.parent / path for page in new for path, _ in links(page) if path.endswith(".md")}
        new = {path.resolve() for path in paths} - found
    assert {page for page in PAGES if page.parent in (ROOT, ROOT / "docs")} <= found
