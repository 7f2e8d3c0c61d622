"""Maps of crossings: an exported network is run over elevation models and photos of any extent.

settings   what map.py is asked
network    the exported file that is meant: a file, a run, the choice of a study
grid       where windows lie, and the tiles that they are computed in
ground     the rasters, read window by window on one grid
screen     a dense pass of the same network that says where to look closer
finding    the probability of each window of a tile
merging    one point a crossing
certainty  what its probability means
judging    the map against true crossings
raster     the probabilities as a raster
run        from top to bottom: settings -> files and a tracked run
"""
