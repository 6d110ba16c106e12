"""What is learnt in a step? Settings, phases, models and the loop."""
