"""Small control tasks as batches of arrays."""
