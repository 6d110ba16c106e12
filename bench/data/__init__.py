"""How long does a data set take to be made and to be opened?"""
