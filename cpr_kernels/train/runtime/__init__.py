"""What does every long job need? Locks, signals, progress, logs, devices, processes, files."""
