"""Looking into runs: outliers, comparisons, refits and the published tables."""
