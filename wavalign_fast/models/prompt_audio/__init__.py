"""Continuous prompt audio: clips become embeddings of the language model, once, by frozen encoders.

No encoder draws random numbers, trains, or lets clips change each other.
"""

from wavalign_fast.models.prompt_audio.cache import PromptAudioCache
from wavalign_fast.models.prompt_audio.encoder import PromptAudioEncoder
from wavalign_fast.models.prompt_audio.step_audio_2 import StepAudio2Encoder
from wavalign_fast.models.prompt_audio.vita_audio_plus import VitaAudioPlusEncoder
from wavalign_fast.models.prompt_audio.whisper import CovoAudioEncoder, KimiAudioEncoder

__all__ = [
    "CovoAudioEncoder",
    "KimiAudioEncoder",
    "PromptAudioCache",
    "PromptAudioEncoder",
    "StepAudio2Encoder",
    "VitaAudioPlusEncoder",
]
