"""What does a person look at? The report, the explorer, and their plots."""
