"""What is remembered between steps? The queue, the bank of samples, momentum encoders."""
