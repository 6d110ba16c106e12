"""How good is what a run mines, by labels and without them?"""
