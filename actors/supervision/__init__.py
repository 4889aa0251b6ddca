"""Whether actors live, and what is done where one does not."""
