"""A compiled model on disk: its graph as JSON, its tensors, one file that holds them and no pickle."""
