"""Our algorithms, one file each."""
