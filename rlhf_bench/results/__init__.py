"""A comparison's directory: its schema, its writer and reader, and the numbers of the report."""
