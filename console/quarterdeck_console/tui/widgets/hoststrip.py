"""The hosts above the fleet's table: one line each, a handful, scrolled to the host under the table's cursor."""

from __future__ import annotations

from textual.geometry import Size

from quarterdeck_console.tui.widgets.table import Table


class HostStrip(Table):
    """A table that is as high as it has hosts, within bounds, and takes no focus by itself."""

    DEFAULT_CSS = """
    HostStrip { height: auto; max-height: 9; margin-bottom: 1; }
    """

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.order) + 1

    def _resize(self) -> None:
        before = self.virtual_size.height
        super()._resize()
        if self.virtual_size.height != before:
            self.refresh(layout=True)
