"""How Faded starts other processes: small modules, because everything that they start pays for their imports."""
