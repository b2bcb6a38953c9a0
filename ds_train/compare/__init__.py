"""`ds-train compare`: arms x seeds of one recipe, trained alike, and a table of what differed."""
