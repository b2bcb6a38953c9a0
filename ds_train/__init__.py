"""ds-train: fine-tuning of large language models on DeepSpeed, whose runs can be trusted."""

__version__ = "0.1.0"
