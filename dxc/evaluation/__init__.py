"""Evaluates predictions: boxes, average precision, matching, bootstrap, classes. It takes arrays and gives numbers."""
