"""Files that travel with the program: the demo model and where it comes from."""
