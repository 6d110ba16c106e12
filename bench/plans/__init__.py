"""Does a plan hold? Studies on drawn data: keys that drift, and tables that are hard to choose for."""
