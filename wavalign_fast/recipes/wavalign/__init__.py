"""WavAlign on a real spoken dialogue model: its own checkpoint, dialogues with sound, a judge."""
