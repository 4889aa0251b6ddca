"""Judges that several tasks share."""
