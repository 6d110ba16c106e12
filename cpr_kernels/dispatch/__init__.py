"""How does a call reach a kernel? Checks, the choice of a backend, the door to the compiled core."""
