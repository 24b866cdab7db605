"""Pictures of results: in the terminal, and as files."""
