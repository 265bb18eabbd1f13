"""Records the answers with flite and learns the codebook from them (only for the build)."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from wavalign_fast.errors import described
from wavalign_fast.recipes.spoken_sums.assets import NUM_ANSWERS, STRETCHES, SpeechAssets
from wavalign_fast.recipes.spoken_sums.data import answer_text
from wavalign_fast.recipes.spoken_sums.mel import SAMPLE_RATE
from wavalign_fast.recipes.spoken_sums.tokenizer import mel_blocks, nearest_centroids
from wavalign_fast.recipes.spoken_sums.vocabulary import NUM_CODES
from wavalign_fast.speech.wave_files import read_wave

VOICE = "rms"


def synthesize(text: str, stretch: float, directory: Path) -> np.ndarray:
    """Synthesizes ``text`` with flite, float32 [samples] at 16 kHz."""
    if shutil.which("flite") is None:
        raise RuntimeError("flite is missing: install it with `apt-get install flite`")
    path = directory / "speech.wav"
    rate = ["--setf", f"duration_stretch={stretch}"]
    command = ["flite", "-voice", VOICE, *rate, "-t", text, "-o", str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode or not path.is_file():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(
            f"flite ended with status {done.returncode}{': ' + said[-1] if said else ''}"
        )
    wave, found = read_wave(path)
    if found != SAMPLE_RATE:
        raise RuntimeError(f"flite wrote {found} Hz, wanted {SAMPLE_RATE}")
    return wave[0].numpy()


def build_speech_assets(seed: int) -> SpeechAssets:
    """Records every answer at every rate and fits the k-means codebook."""
    try:
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name} is missing: install it with `pip install 'wavalign-fast[build-recipe]'`"
        ) from error
    except (Exception, SystemExit) as error:
        raise RuntimeError(f"scikit-learn cannot be imported: {described(error)}") from error
    with tempfile.TemporaryDirectory() as scratch:
        blocks = [
            [
                mel_blocks(synthesize(f"{answer_text(number)}.", stretch, Path(scratch)))
                for stretch in STRETCHES
            ]
            for number in range(NUM_ANSWERS)
        ]
    frames = np.concatenate([block for by_rate in blocks for block in by_rate])
    kmeans = MiniBatchKMeans(NUM_CODES, n_init=2, batch_size=4096, max_iter=100, random_state=seed)
    # Round first: the codes must be those of the stored (fp16) centroids.
    with threadpool_limits(1):  # the order of sums over several threads changes the centroids
        centroids = kmeans.fit(frames).cluster_centers_.astype(np.float16).astype(np.float32)
    recordings = tuple(
        tuple(tuple(nearest_centroids(block, centroids).tolist()) for block in by_rate)
        for by_rate in blocks
    )
    return SpeechAssets(centroids, recordings)
