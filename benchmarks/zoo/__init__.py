"""Every model of the acceptance matrix through channel elimination, compared with the masked model in float64."""
