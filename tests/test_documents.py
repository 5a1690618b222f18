"""What the documents point at is there, their commands and flags are real, and nothing in them waits to be written."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from effdense.config import load_yaml, parse
from effdense.config_flags import flag
from effdense.tasks.detection.config import DetectionConfig
from effdense.tasks.multitask.config import MultitaskConfig
from effdense.tasks.segmentation.config import SegmentationConfig
from effdense.tools.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)

_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)|<(?:img|a)\b[^>]*?(?:src|href)\s*=\s*[\"']([^\"']+)|^\[[^\]]+\]:\s*(\S+)", re.M
)
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_-]+")
_COMMAND = re.compile(r"^(?:    )+python tools/(\w+)\.py(.*)$", re.M)
_FLAG = re.compile(r"(?<![\w-])--[a-z0-9-]*[a-z0-9](?![\w-])")

_PLACES = {
    "eval_det": ("model",),
    "eval_seg": ("model",),
    "eval_multi": ("model",),
    "predict": ("model", "images"),
    "join": ("detector", "segmenter"),
    "export": ("model",),
}
"""What tools take by place."""

_MEANT = {"N": "1", "ARCH": "fpn"}
"""What may stand for a word that the reader fills in and a tool checks."""

_OF_OTHERS = {"--help", "--version", "--config"}
"""Flags that are no setting."""

RECIPES = {"det": DetectionConfig, "seg": SegmentationConfig, "multi": MultitaskConfig}


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


def settings_of(tool: str) -> type[Any]:
    """The dataclass that a tool parses: the one of its own module, or the one that it imports."""
    module = import_module(f"effdense.tools.{tool}")
    if tool == "predict":
        found: type[Any] = module._all_settings(check=False)
        return found
    configs = [
        one
        for name, one in vars(module).items()
        if isinstance(one, type) and is_dataclass(one) and name.endswith(("Config", "BenchSettings"))
    ]
    return configs[0]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Tool and arguments of every command in a document's code."""
    return [(tool, shlex.split(rest, comments=True)) for tool, rest in _COMMAND.findall(text.replace("\\\n", " "))]


def all_flags() -> set[str]:
    """Every flag that some tool has."""
    names = {one.name for path in (ROOT / "tools").glob("*.py") for one in _fields_of(path.stem)}
    return {flag(name) for name in names} | {f"--no-{flag(name)[2:]}" for name in names}


def _fields_of(tool: str) -> tuple[Any, ...]:
    return () if tool in ("__init__", "main", "console", "checkout") else fields(settings_of(tool))


COMMAND_LINES = [
    pytest.param(tool, arguments, id=f"{document.stem}-{number}-{tool}")
    for document in DOCUMENTS
    for number, (tool, arguments) in enumerate(commands(document.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("tool", "arguments"), COMMAND_LINES)
def test_every_command_of_a_document_is_one_that_its_tool_takes(tool: str, arguments: list[str]) -> None:
    if "--config" in arguments:
        at = arguments.index("--config") + 1
        if arguments[at].startswith("recipes/"):
            arguments[at] = str(ROOT / arguments[at])
        else:  # a file of the reader's
            arguments = arguments[: at - 1] + arguments[at + 1 :]
    parse(
        settings_of(tool), [_MEANT.get(word, word) for word in arguments], prog=tool, positional=_PLACES.get(tool, ())
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_flag_that_a_document_names_is_there(document: Path) -> None:
    named = set(_FLAG.findall(document.read_text(encoding="utf-8")))
    assert sorted(named - all_flags() - _OF_OTHERS) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_place_in_the_documents(name: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    assert any(f"tools/{COMMANDS[name].module}.py" in page for page in pages)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_made_of_settings_and_named_in_a_document(recipe: Path) -> None:
    load_yaml(RECIPES[recipe.stem.partition("_")[0]], recipe)
    assert any(f"recipes/{recipe.name}" in page.read_text(encoding="utf-8") for page in DOCUMENTS)


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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("python tools/x.py --in-prose", [], id="prose"),
        pytest.param("    python tools/x.py\n", [("x", [])], id="no-argument"),
        pytest.param("    python tools/x.py a --b 1   # why\n", [("x", ["a", "--b", "1"])], id="comment"),
        pytest.param("        python tools/x.py a\n", [("x", ["a"])], id="within-a-list"),
    ],
)
def test_commands_are_found_in_code(text: str, found: list[tuple[str, list[str]]]) -> None:
    assert commands(text) == found
