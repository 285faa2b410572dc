"""TiUE: one-pass text-to-image students."""
