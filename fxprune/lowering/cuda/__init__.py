"""From annotated layers to a program for a GPU; it is made on any machine and tied to a GPU when it first runs."""
