"""What jobs train on: portraits, encoded once or rendered, and images with their captions."""
