"""How does `cpr explore` find what its page shows? In runs of the trainer, or in a table of embeddings."""
