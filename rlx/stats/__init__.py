"""What runs amount to: aggregates over seeds with their intervals, comparisons, figures."""
