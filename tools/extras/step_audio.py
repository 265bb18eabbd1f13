"""The codec's package can be imported; it needs a GPU to do more."""

import s3tokenizer
from stepaudio2 import Token2wav

assert Token2wav and s3tokenizer.log_mel_spectrogram
