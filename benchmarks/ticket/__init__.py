"""The ticket experiment: lottery tickets on real images, retrained in every structure, compiled and timed."""
