"""Everything with a coordinate reference system: rasters, sites, chips.

formats      decides which files GDAL opens, and with which driver
rasters      reads rasters by windows, points and lines, in one projected CRS
mosaic       reads tiles as one raster
elevation    finds the unit of a DEM
photobands   identifies the bands of a photo and its mask
sites        sites of crossings, and sites without one
chips        cuts a region into chips
windows      reads and writes one chip: pixels of both rasters as GeoTIFFs
overlaps     finds chips that share ground
breach       lines that let water through embankments, and the DEM with them cut in
flow         sees whether water passes at crossings
crossing_layers  writes a map's points, lines and area as a GeoPackage with styles
voc          reads and writes boxes in Pascal VOC files
tables       points out of a CSV
record       what a finished region says about itself
bands        names of a photo's bands
rasterfiles  limits of size for rasters, checked before a pixel is read
guarded_xml  reads XML from untrusted sources
"""
