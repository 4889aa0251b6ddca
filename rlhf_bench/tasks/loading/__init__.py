"""Rows of the user's data: where they are, how they are read, and TRL's columns."""
