"""Text on the screen that takes `Content` and nothing else: the type says what the rule says.

All fixed lines of the UI are these; nothing else in it may use Textual's own text widgets.
"""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

_EMPTY = Content("")


class Label(Static):
    """One or more lines that change now and then. Setting what is shown already costs nothing."""

    def __init__(self, content: Content = _EMPTY, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(content, markup=False, id=id, classes=classes)
        self._shown = content

    @property
    def shown(self) -> Content:
        """What it shows now."""
        return self._shown

    def show(self, content: Content) -> None:
        """Show this from now on."""
        if content.plain != self._shown.plain or content.spans != self._shown.spans:
            self._shown = content
            # Most are of a fixed size: laying out the whole screen anew for each would cost more than drawing it.
            self.update(content, layout=self.styles.auto_dimensions)
