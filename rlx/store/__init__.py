"""Directories of runs and sweeps: made, opened safely, trusted, locked, listed."""
