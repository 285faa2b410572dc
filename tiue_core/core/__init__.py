"""The method: schedule, UNet halves, and nothing of the project outside this room."""
