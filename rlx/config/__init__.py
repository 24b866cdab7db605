"""Configuration: what can be set, and how a command line becomes it. Nothing here imports torch."""
