"""What algorithms remember of the environments."""
