"""What growtas is measured against: each file is one way to run such a supernet today."""
