"""Images on disk -> tensors.

source     where chips come from: a folder, or a synthetic watershed that is made first
layout     chips on disk -> manifest (which file is which chip)
bands      raw bands -> named channels (indices, repair, normalisation)
cache      manifest + channels -> one memory-mapped array for each size of chip, built once
folds      labels and regions -> training and validation indices
next_step  the command that trains on what prepare.py cut
datamodule all of these behind Lightning's interface
"""
