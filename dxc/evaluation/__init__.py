"""Evaluates predictions: boxes, average precision, matching, bootstrap, answers of classifiers. It takes arrays and gives numbers."""
