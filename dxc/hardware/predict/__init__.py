"""nn-Meter's way: the kernels of an exported file, and a package of predictors."""
