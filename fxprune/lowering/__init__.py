"""From annotated layers to running code: which kernel each layer gets, where tensors lie, what runs."""
