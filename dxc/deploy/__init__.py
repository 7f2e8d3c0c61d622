"""Exported networks: the file, what it says about its input and outputs, and the predictor."""
