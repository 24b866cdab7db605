"""The settings of each algorithm; without torch, so that the command line checks them fast."""
