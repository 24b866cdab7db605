"""Environments: vectorised stepping without autoreset, snapshots, and the catalogue of names. Nothing here imports torch."""
