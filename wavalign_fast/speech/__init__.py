"""Speech in and out: WAV files, resampling, and codecs between waves and codes."""
