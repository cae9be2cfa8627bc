"""What the module does when a guest stops."""
