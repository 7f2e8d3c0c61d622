"""How good predictions are: boxes, average precision, matching, bootstrap. Arrays in, numbers out."""
