"""Few-shot learning without a model: subsets, episodes, demonstrations, calibration; numpy only."""
