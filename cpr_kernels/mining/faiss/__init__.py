"""Can an index propose positives? FAISS finds candidates, the cascade finishes exactly on them."""
