"""How any verb is run: plan before spending, then run here or on Ray."""
