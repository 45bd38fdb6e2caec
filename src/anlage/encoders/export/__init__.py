"""Our encoders in the formats of others."""
