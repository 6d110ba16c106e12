"""Does the choice of a plan hold, on public tables, on drawn ones, and while keys drift?"""
