"""Adapters that give each kind of model the interface of a tree search, `rlx.planning.search.TreeModel`."""
