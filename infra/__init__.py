"""The ground: where bytes live and where code runs. Imports `schemas` only."""
