"""A table that is as high as it has rows, up to the bound that its screen's CSS sets."""

from __future__ import annotations

from textual.geometry import Size

from quarterdeck_console.tui.widgets.table import Table


class FittedTable(Table):
    """At least one line below its header, so that it can say that it is empty."""

    DEFAULT_CSS = """
    FittedTable { height: auto; max-height: 9; margin-bottom: 1; }
    """

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, len(self.order)) + 1

    def _resize(self) -> None:
        before = self.virtual_size.height
        super()._resize()
        if self.virtual_size.height != before:
            self.refresh(layout=True)
