"""What is on disk? Videos, stored frames, flow and sound, and the manifest that lists them."""
