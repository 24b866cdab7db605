"""Configuration: the settings, their rules, and their composition from files and a command line. Nothing here imports torch."""
