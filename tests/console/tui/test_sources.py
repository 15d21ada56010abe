"""Rules of the UI that its sources must keep, read from the sources themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import quarterdeck_console.tui

FOLDER = Path(quarterdeck_console.tui.__file__).parent
SOURCES = sorted(FOLDER.rglob("*.py"))

DOOR = {"words.py", "widgets/label.py"}
"""The only modules that may turn a `str` into something a widget shows."""

TEXT_WIDGETS = {
    "Static", "Label", "Button", "RichLog", "Log", "DataTable", "OptionList", "Option", "Select", "SelectionList",
    "Tree", "ListItem", "ListView", "Digits", "Header", "Footer", "Checkbox", "RadioButton", "Tab", "Tabs",
    "Collapsible",
    "TabPane", "TabbedContent", "Pretty", "Link", "Toast", "Placeholder", "Rule", "MarkdownViewer",
}  # fmt: skip
"""Textual's own widgets that parse a `str` as markup, somewhere."""

CALLS = {"notify", "from_markup", "from_text", "from_rich_text"}
ATTRIBUTES = {"border_title", "border_subtitle", "tooltip", "title", "sub_title", "help", "HELP", "loading_message"}


def _wrong(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("textual.widgets"):
            for name in node.names:
                if name.name in TEXT_WIDGETS:
                    yield node.lineno, f"imports Textual's {name.name}: use widgets.label.Label"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in CALLS:
                yield node.lineno, f"calls {called}: it reads markup"
            if called == "show" and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp):
                yield node.lineno, "shows a str"
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr in ATTRIBUTES:
                    yield node.lineno, f"sets {target.attr}: Textual reads it as markup"
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today") and _is_datetime(node.value):
            yield node.lineno, "reads the wall clock: ask context.now()"


def _is_datetime(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("datetime", "date")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_text_reaches_a_widget_but_through_words(path: Path) -> None:
    name = str(path.relative_to(FOLDER))
    if name in DOOR or name == "context.py":
        return
    found = [f"{name}:{line}: {what}" for line, what in _wrong(ast.parse(path.read_text()))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "from textual.widgets import Static",
        "app.notify(name)",
        "Content.from_markup(name)",
        "label.show('x')",
        "label.show(f'{x}')",
        "self.border_title = name",
        "datetime.now()",
    ],
)
def test_the_rule_finds_what_it_is_about(source: str) -> None:
    assert list(_wrong(ast.parse(source)))


def test_the_door_itself_never_reads_markup() -> None:
    from quarterdeck_console.tui import words
    from quarterdeck_console.views import Severity

    text = "[/x] [@click=app.quit]x[/] \x1b]52;c;eA==\x07 \u202e"
    for made in (words.line(text), words.block(text, Severity.BAD), words.joined((text, "bold"), (text, ""))):
        assert "[@click=app.quit]x[/]" in made.plain
        assert not set("\x1b\x07\u202e") & set(made.plain)
        assert all("click" not in str(span.style) for span in made.spans)
