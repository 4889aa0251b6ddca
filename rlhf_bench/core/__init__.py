"""What every room may use: records, errors, costs, settings, text, YAML, files. It imports no other room."""
