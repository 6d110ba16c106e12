"""How does a call reach a kernel? Checks, the choice of a backend, the bindings to the compiled core."""
