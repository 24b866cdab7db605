"""Directories of runs and sweeps: create, open safely, trust, lock, list, label, delete; the records in them."""
