"""Files of demonstrations: one module for each format."""
