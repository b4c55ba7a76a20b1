"""What the program creates: one component a file, named for what it is."""
