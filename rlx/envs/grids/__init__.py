"""Grid worlds that are observed as planes of bits."""
