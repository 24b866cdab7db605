"""Sweeps: search spaces, plans of runs, the Optuna study, and the executors that train the runs."""
