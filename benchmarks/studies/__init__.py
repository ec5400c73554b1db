"""Small experiments whose outcome is reported as it is."""
