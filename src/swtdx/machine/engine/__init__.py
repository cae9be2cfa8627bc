"""How guest instructions are executed."""
