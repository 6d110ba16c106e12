"""`cpr mine`: positives from a user's own embeddings. Imported by the console script alone.

Reads top to bottom: `options` (what was asked?), `tables` (files), `inputs` (which arrays are views, ids and
labels?), `embeddings` (arrays become tensors), `mine` (the run), `summary` (what is said of it).
"""
