"""Find the photos of a map that show the same place as another photo."""
