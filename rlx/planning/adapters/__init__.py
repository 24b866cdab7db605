"""How a tree search asks each kind of model."""
