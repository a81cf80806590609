"""What needs a GPU; without one every test here is skipped with that reason."""
