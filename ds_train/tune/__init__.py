"""`ds-train tune`: the quickest settings of a recipe, found by short real runs."""
