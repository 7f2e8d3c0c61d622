"""Evaluates predictions: boxes, average precision, matching, bootstrap. It takes arrays and gives numbers."""
