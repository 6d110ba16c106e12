"""How does a run mine by its own choice, and how good is what it mines?"""
