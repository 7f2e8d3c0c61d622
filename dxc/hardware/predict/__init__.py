"""Predicts latency with nn-Meter's method: the kernels of an exported file, and a package of predictors."""
