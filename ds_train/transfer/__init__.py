"""`ds-train transfer`: what pretraining is worth on the target data, measured against none."""
