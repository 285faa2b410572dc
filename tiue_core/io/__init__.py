"""Files written whole or not at all; pictures, and what their metadata says of their making."""
