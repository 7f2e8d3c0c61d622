"""Everything with a coordinate reference system: rasters, sites, chips.

formats      which files are opened, and by which driver
rasters      rasters, points and lines on one projected CRS, read by windows
elevation    the unit of a DEM
photobands   which bands of a photo are which, and which is a mask
sites        where crossings and other places lie
chips        a region is cut: where chips lie, what is left out
windows      one chip: pixels of both rasters, written as GeoTIFFs
overlaps     chips that share ground
voc          boxes in Pascal VOC files
bands        names of a photo's bands
rasterfiles, guarded_xml, limits    what a file may ask for
"""
