"""The maths of FoL: tensors in, tensors out. See README.md beside this file for the public door."""
