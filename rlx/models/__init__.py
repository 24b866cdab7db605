"""Learned models of environments, for planners to imagine with."""
