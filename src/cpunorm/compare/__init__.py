"""What ``cpunorm compare`` does: pictures, contestants, measuring, showing. Needs the `cli` extra."""
