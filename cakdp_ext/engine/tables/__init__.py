"""The paper's tables with what is measured here beside them: ``tools/tables.py``."""

from cakdp_ext.engine.tables.ours import Measured, Measurer, MeasureSettings
from cakdp_ext.engine.tables.paper import PaperRow, PaperTable, read_tables
from cakdp_ext.engine.tables.text import render_table

__all__ = ["MeasureSettings", "Measured", "Measurer", "PaperRow", "PaperTable", "read_tables", "render_table"]
