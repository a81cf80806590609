"""Peers side by side in one run: dense engines and fxprune on the same masked model, interleaved."""
