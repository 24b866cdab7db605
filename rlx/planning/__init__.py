"""Planning: one tree search for known rules and for learned models."""
