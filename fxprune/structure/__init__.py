"""The mathematics of masks, on arrays only: no graph, no torch module, no target."""
