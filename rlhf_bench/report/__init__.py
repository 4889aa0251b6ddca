"""The report of a comparison: `summary.json`, `report.html` and the table at the end of a run."""

from rlhf_bench.report.page import draw_properties, write_report
from rlhf_bench.report.tables import comparison_table, render_text_table
from rlhf_bench.results.summary import Summary

__all__ = ["Summary", "comparison_table", "draw_properties", "render_text_table", "write_report"]
