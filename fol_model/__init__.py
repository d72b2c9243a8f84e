"""The maths of FoL: tensors in, tensors out. See README.md beside this file for the public door.

Pipelines use `fol_model.inference`, with `config`, `recipes` and `recall`; everything else is free to change.
"""

from fol_model.matching import count_mutual_matches
from fol_model.weights import from_reference

__all__ = ["count_mutual_matches", "from_reference"]
