"""Models of environments, how they are fitted, and how planners unroll them."""
