"""The parts a vision transformer is built from."""
