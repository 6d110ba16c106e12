"""How good are the features? Retrieval, linear probe, classifiers on learnt features."""
