"""What keeps the house in shape: walls, circles, documents and habits, checked by machine."""
