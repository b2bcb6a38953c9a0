"""The quickstart: an invented language, a base model that learns it, a LoRA that learns a task."""
