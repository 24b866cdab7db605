"""Two-player games."""
