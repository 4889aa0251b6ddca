"""The report's plots: their style, the overview, and how a figure becomes SVG."""
