"""The command line: one file a command; exit codes in `main`."""

from time import perf_counter

BEGAN = perf_counter()
"""When the program began: before anything that takes time to import."""
