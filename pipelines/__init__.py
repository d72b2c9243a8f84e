"""The verbs: one folder for each command of `folio`. May import everything; nothing imports it."""
