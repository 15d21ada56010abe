"""The hosts above the fleet's table: one line each, a handful, scrolled to the host under the table's cursor."""

from __future__ import annotations

from textual import events
from textual.geometry import Size

from quarterdeck_console.tui.widgets.table import Table

GPU_WIDTH = 25
FIXED = 46
"""Columns of the terminal that name, CPU, memory and disk take."""


class HostStrip(Table):
    """A table that is as high as it has hosts, within bounds, and takes no focus by itself."""

    DEFAULT_CSS = """
    HostStrip { height: auto; max-height: 9; margin-bottom: 1; }
    """

    def gpus_that_fit(self) -> int:
        """How many GPUs have room side by side; 0 where a host gets its worst GPU only."""
        return max(0, (self.app.size.width - FIXED) // GPU_WIDTH)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.order) + 1

    def _resize(self) -> None:
        before = self.virtual_size.height
        super()._resize()
        if self.virtual_size.height != before:
            self.refresh(layout=True)

    def on_click(self, event: events.Click) -> None:
        super().on_click(event)
