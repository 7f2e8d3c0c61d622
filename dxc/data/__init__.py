"""Rasters and chips on disk -> tensors.

cutting    rasters + points -> chips in the published folder layout; its parts are geosources (rasters by
           window, points, coordinate systems), places (grid, negatives) and cutter (writing)
synthetic  watersheds that need no download: rasters + points, cut by the same cutter; its parts are
           landscape (ground, streams, roads as lines) and scenery (elevation and photo)
layout     chips on disk -> manifest (which file is which chip)
bands      raw bands -> named channels (indices, repair, normalisation)
voc        boxes of crossings in Pascal VOC files
cache      manifest + channels -> one memory-mapped array for each size of chip, built once
folds      labels and regions -> training and validation indices
datamodule all of these behind Lightning's interface
"""
