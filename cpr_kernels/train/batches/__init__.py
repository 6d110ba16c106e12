"""What makes up a batch? Clips, their order, and the loader."""
