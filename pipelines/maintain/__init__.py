"""Look after published maps: versions, rollback, verify."""
