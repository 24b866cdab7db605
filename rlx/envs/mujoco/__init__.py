"""MuJoCo robots as batches over MjData."""
