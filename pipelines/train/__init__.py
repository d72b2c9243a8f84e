"""places ▶ weights: photos are arranged into places, and the network learns to tell them apart."""
