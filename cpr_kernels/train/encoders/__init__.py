"""How are encoders run, saved and loaded? Their files, the published checkpoints, and the layout of their inputs."""
