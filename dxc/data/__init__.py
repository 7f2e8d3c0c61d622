"""Rasters and chips on disk -> tensors.

cutting    rasters + points -> chips in the published folder layout; with
           geosources (rasters by window, points, coordinate systems), places (grid, negatives), cutter (writing)
synthetic  watersheds that need no download: rasters + points, cut by the same cutter
layout     chips on disk -> manifest (which file is which chip)
bands      raw bands -> named channels (indices, repair, normalisation)
cache      manifest + channels -> one memory-mapped array, built once
folds      labels and regions -> training and validation indices
datamodule all of these behind Lightning's interface
"""
