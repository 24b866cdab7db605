"""Statistics of runs: aggregates over seeds with confidence intervals, comparisons, learning curves, ratings."""
