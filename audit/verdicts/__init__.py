"""Turn matches into verdicts: thresholds, regions, copies, risk."""
