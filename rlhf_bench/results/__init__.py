"""What a comparison's directory holds: its schema, who writes it, who reads it, and the numbers drawn from it."""
