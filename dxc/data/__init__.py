"""Images on disk -> tensors.

source     where images come from: a folder, a download, or something that is made first
layout     chips on disk -> manifest (which file is which chip)
bands      raw bands -> named channels (indices, repair, normalisation)
cache      manifest + channels -> one memory-mapped array for each size of chip, built once
folds      labels and regions -> training and validation indices
next_step  the command that trains on what prepare.py cut
datamodule all of these behind Lightning's interface
images     what a network is trained on, as all rooms see it: chips, or images of a published set
published  a published set behind Lightning's interface; augment changes its training batches
cifar10    the binary files of CIFAR-10; download fetches them
"""
