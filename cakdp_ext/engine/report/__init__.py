"""What did it cost, what did it bring? One page, one JSON file, one table for the terminal."""

from cakdp_ext.engine.report.console import console_table
from cakdp_ext.engine.report.content import Birdview, BirdviewPanel, Report, ReportRow, to_dict
from cakdp_ext.engine.report.render import render_report

__all__ = ["Birdview", "BirdviewPanel", "Report", "ReportRow", "console_table", "render_report", "to_dict"]
