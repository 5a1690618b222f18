"""What the documents point at is there, and nothing in them still waits to be written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)

_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)|<(?:img|a)\b[^>]*?(?:src|href)\s*=\s*[\"']([^\"']+)|^\[[^\]]+\]:\s*(\S+)", re.M
)
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_-]+")


def prose(text: str) -> str:
    """The text without fenced and indented code, and without code within a line."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.M)
    return re.sub(r"`[^`\n]*`", "", text)


def links(text: str) -> list[str]:
    """Targets of links and images in a document, those to other sites left out."""
    found = [next(filter(None, groups)) for groups in _LINK.findall(prose(text))]
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def anchors(text: str) -> set[str]:
    """What a link may name behind #: the headings as GitHub makes anchors of them."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unwritten(text: str) -> list[str]:
    """Lines that are nothing but an upper-case word."""
    return [line for line in text.splitlines() if _PLACEHOLDER.fullmatch(line.strip())]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_and_picture_of_a_document_is_there(document: Path) -> None:
    missing = []
    for target in links(document.read_text(encoding="utf-8")):
        name, _, fragment = target.partition("#")
        path = document.parent / name if name else document
        if not path.exists() or (
            fragment and path.suffix == ".md" and fragment not in anchors(path.read_text(encoding="utf-8"))
        ):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_line_of_a_document_waits_to_be_written(document: Path) -> None:
    assert not unwritten(document.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("[a](b.md#c) ![d](e/f.jpg)", ["b.md#c", "e/f.jpg"], id="link-and-picture"),
        pytest.param("[![badge](b.svg)](c.md)", ["b.svg", "c.md"], id="picture-in-a-link"),
        pytest.param('<img width=3 src="g.png"> <a href="h.md">', ["g.png", "h.md"], id="html"),
        pytest.param("[a]: b.md", ["b.md"], id="reference"),
        pytest.param("[a](https://b.c) [d](mailto:e@f)", [], id="other-sites"),
        pytest.param("`[a](b)`\n\n    [c](d)\n\n```\n[e](f)\n```\n", [], id="code"),
    ],
)
def test_links_are_found_in_every_form(text: str, found: list[str]) -> None:
    assert links(text) == found


@pytest.mark.parametrize(
    ("line", "waits"), [("TABLE", True), ("  BCCD_2", True), ("A", False), ("AP50 is a number.", False), ("", False)]
)
def test_a_bare_upper_case_word_is_a_placeholder(line: str, waits: bool) -> None:
    assert bool(unwritten(f"text\n{line}\n")) is waits


def test_headings_become_anchors_as_on_github() -> None:
    text = "# Stop and resume\n## COCO JSON: `--dataset coco`\n```\n# no heading\n```\n"
    assert anchors(text) == {"stop-and-resume", "coco-json---dataset-coco"}
