"""Editing methods that need no training, behind one function, and their comparison."""
