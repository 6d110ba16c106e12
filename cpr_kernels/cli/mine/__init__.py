"""What does cpr mine do? Positives from tables of embeddings."""
