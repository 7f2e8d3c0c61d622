"""A predictor package for this machine: networks are drawn, measured, fitted."""
