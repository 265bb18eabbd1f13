"""Reads the decoder's ``config.yaml`` without running what it names.

The file is of HyperPyYAML: its tags name classes to build. Here a tag becomes a dict entry, and
each value is compared with what is implemented.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, naming, shown

CLASS = "!new"
"""Key under which a dict holds the class that its tag names."""
ELSEWHERE = "use the adapter 'import' or 'subprocess' with the family's own code"

SAMPLE_RATE = 22_050
HOP = 256
"""Samples of one mel frame."""
MEL_BINS = 80


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of the encoder of codes."""

    layers: int
    heads: int
    inner: int
    block: int
    """Codes that see each other; a code also sees all before its block."""


@dataclass(frozen=True)
class UNetSizes:
    """Sizes of the network that turns noise into mel frames."""

    channels: tuple[int, ...]
    heads: int
    head_width: int
    transformers: int
    """In each block."""
    middle_blocks: int


@dataclass(frozen=True)
class FlowSizes:
    """Sizes of codes → mel."""

    codebook_size: int
    width: int
    encoder_width: int
    speaker_width: int
    codes_per_second: float
    encoder: EncoderSizes
    regulator_layers: int
    guidance: float
    unet: UNetSizes

    def frames(self, codes: int) -> int:
        """Returns how many mel frames that many codes become."""
        return int(codes / self.codes_per_second * SAMPLE_RATE / HOP)


@dataclass(frozen=True)
class HiftSizes:
    """Sizes and constants of mel → wave."""

    channels: int
    harmonics: int
    sine_height: float
    noise_height: float
    voiced_from: float
    """Pitch in Hz below which a frame counts as unvoiced."""
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    fft: int
    fft_hop: int
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    source_kernels: tuple[int, ...]
    source_dilations: tuple[tuple[int, ...], ...]
    slope: float
    limit: float
    pitch_channels: int


def read_decoder_config(path: Path) -> tuple[FlowSizes, HiftSizes]:
    """Reads the sizes of both networks.

    Raises:
        UserError: the file cannot be read, a value is missing, or one asks for what is not
            implemented; its name is given.
    """
    from wavalign_fast.speech.glm4_voice.tagged_yaml import read_tagged_yaml

    with naming(str(path)):
        flow, hift = read_tagged_yaml(path, "flow", "hift")
        return _flow(_Node(flow, "flow")), _hift(_Node(hift, "hift"))


class _Node:
    """A mapping of the file whose entries are taken one by one; what is left over is refused."""

    def __init__(self, value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is {shown(value)}, wanted a mapping")
        self.left = dict(value)
        self.name = name

    def is_class(self, wanted: str) -> None:
        self.must_be(CLASS, wanted, required=True)

    def must_be(self, key: str, *wanted: Any, required: bool = False) -> None:
        """Refuses any other value; the entry may be missing unless it is required."""
        if not required and key not in self.left:
            return
        seen = self.left.pop(key, None)
        if seen not in wanted or isinstance(seen, bool) != isinstance(wanted[0], bool):
            implemented = " or ".join(shown(value) for value in wanted)
            raise UserError(
                f"{self.name}.{key} is {shown(seen)}, implemented is {implemented}: {ELSEWHERE}"
            )

    def ignore(self, *keys: str) -> None:
        """Drops entries that matter in training only."""
        for key in keys:
            self.left.pop(key, None)

    def node(self, key: str) -> "_Node":
        return _Node(self.left.pop(key, None), f"{self.name}.{key}")

    def whole(self, key: str) -> int:
        number = self.number(key)
        if number != int(number) or number < 1:
            raise UserError(f"{self.name}.{key} is {shown(number)}, wanted a whole number from 1")
        return int(number)

    def wholes(self, key: str) -> tuple[int, ...]:
        return _wholes(self.left.pop(key, None), f"{self.name}.{key}")

    def lists(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self.left.pop(key, None)
        if not isinstance(value, list) or not value:
            raise UserError(f"{self.name}.{key} is {shown(value)}, wanted a list of lists")
        return tuple(_wholes(item, f"{self.name}.{key}") for item in value)

    def number(self, key: str) -> float:
        value = self.left.pop(key, None)
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)  # YAML 1.1 takes 1e-06 for a text
        except (TypeError, ValueError):
            seen = shown(value)
            raise UserError(f"{self.name}.{key} is {seen}, wanted a number") from None

    def end(self) -> None:
        """Refuses entries that nobody took."""
        if self.left:
            names = ", ".join(f"{self.name}.{key} = {shown(self.left[key])}" for key in self.left)
            raise UserError(f"not implemented: {names}: {ELSEWHERE}")


def _wholes(value: Any, name: str) -> tuple[int, ...]:
    good = isinstance(value, list) and value
    if not good or not all(type(item) is int and item > 0 for item in value):
        raise UserError(f"{name} is {shown(value)}, wanted a list of whole numbers from 1")
    return tuple(value)


def _flow(node: _Node) -> FlowSizes:
    node.is_class("cosyvoice.flow.flow.MaskedDiffWithXvec")
    node.must_be("output_size", MEL_BINS, required=True)
    node.must_be("output_type", "mel")
    node.ignore("only_mask_loss", "mel_feat_conf", "decoder_conf")
    width = node.whole("input_size")
    encoder, encoder_width = _encoder(node.node("encoder"), width)
    guidance, unet = _matching(node.node("decoder"))
    sizes = FlowSizes(
        codebook_size=node.whole("vocab_size"),
        width=width,
        encoder_width=encoder_width,
        speaker_width=node.whole("spk_embed_dim"),
        codes_per_second=node.number("input_frame_rate"),
        encoder=encoder,
        regulator_layers=_regulator(node.node("length_regulator")),
        guidance=guidance,
        unet=unet,
    )
    node.end()
    return sizes


def _encoder(node: _Node, width: int) -> tuple[EncoderSizes, int]:
    node.is_class("cosyvoice.transformer.encoder.BlockConformerEncoder")
    node.ignore("dropout_rate", "positional_dropout_rate", "attention_dropout_rate")
    node.ignore("gradient_checkpointing", "cnn_module_kernel", "cnn_module_norm", "causal")
    node.must_be("input_size", width, required=True)
    for key, wanted in {
        "use_cnn_module": False,
        "macaron_style": False,
        "input_layer": "linear",
        "pos_enc_layer_type": "rel_pos_espnet",
        "selfattention_layer_type": "block_rel_selfattn",
    }.items():  # the classes' own defaults differ
        node.must_be(key, wanted, required=True)
    node.must_be("normalize_before", True)
    node.must_be("activation_type", "swish")
    node.must_be("positionwise_conv_kernel_size", 1)
    node.must_be("static_chunk_size", 0)
    node.must_be("use_dynamic_chunk", False)
    node.must_be("use_dynamic_left_chunk", False)
    node.must_be("global_cmvn", None)
    node.must_be("key_bias", True)
    encoder_width = node.whole("output_size")
    sizes = EncoderSizes(
        layers=node.whole("num_blocks"),
        heads=node.whole("attention_heads"),
        inner=node.whole("linear_units"),
        block=node.whole("block_size"),
    )
    node.end()
    return sizes, encoder_width


def _regulator(node: _Node) -> int:
    node.is_class("cosyvoice.flow.length_regulator.InterpolateRegulator")
    node.must_be("channels", MEL_BINS, required=True)
    node.must_be("out_channels", MEL_BINS, None)
    node.must_be("groups", 1)
    ratios = node.wholes("sampling_ratios")
    if set(ratios) != {1}:
        raise UserError(f"{node.name}.sampling_ratios is {list(ratios)}, implemented is 1 each")
    node.end()
    return len(ratios)


def _matching(node: _Node) -> tuple[float, UNetSizes]:
    node.is_class("cosyvoice.flow.flow_matching.ConditionalCFM")
    node.must_be("in_channels", 3 * MEL_BINS)  # no part of the network has this size
    node.must_be("n_spks", 1)
    node.must_be("spk_emb_dim", MEL_BINS)
    params = node.node("cfm_params")
    if params.left.get(CLASS) is not None:
        params.is_class("omegaconf.DictConfig")
        inner = params.node("content")
        params.end()
        params = inner
    params.ignore("sigma_min", "training_cfg_rate", "reg_loss_type")
    params.must_be("solver", "euler")
    params.must_be("t_scheduler", "cosine", required=True)
    guidance = params.number("inference_cfg_rate")
    params.end()
    unet = _unet(node.node("estimator"))
    node.end()
    return guidance, unet


def _unet(node: _Node) -> UNetSizes:
    node.is_class("cosyvoice.flow.decoder.ConditionalDecoder")
    node.must_be("in_channels", 4 * MEL_BINS, required=True)
    node.must_be("out_channels", MEL_BINS, required=True)
    node.must_be("act_fn", "gelu", required=True)
    node.ignore("dropout")
    sizes = UNetSizes(
        channels=node.wholes("channels"),
        heads=node.whole("num_heads"),
        head_width=node.whole("attention_head_dim"),
        transformers=node.whole("n_blocks"),
        middle_blocks=node.whole("num_mid_blocks"),
    )
    node.end()
    return sizes


def _hift(node: _Node) -> HiftSizes:
    node.is_class("cosyvoice.hifigan.generator.HiFTGenerator")
    node.must_be("in_channels", MEL_BINS, required=True)
    node.must_be("sampling_rate", SAMPLE_RATE, required=True)
    fft = node.node("istft_params")
    pitch = node.node("f0_predictor")
    pitch.is_class("cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor")
    pitch.must_be("num_class", 1)
    pitch.must_be("in_channels", MEL_BINS, required=True)
    sizes = HiftSizes(
        channels=node.whole("base_channels"),
        harmonics=node.whole("nb_harmonics"),
        sine_height=node.number("nsf_alpha"),
        noise_height=node.number("nsf_sigma"),
        voiced_from=node.number("nsf_voiced_threshold"),
        rates=node.wholes("upsample_rates"),
        kernels=node.wholes("upsample_kernel_sizes"),
        fft=fft.whole("n_fft"),
        fft_hop=fft.whole("hop_len"),
        block_kernels=node.wholes("resblock_kernel_sizes"),
        block_dilations=node.lists("resblock_dilation_sizes"),
        source_kernels=node.wholes("source_resblock_kernel_sizes"),
        source_dilations=node.lists("source_resblock_dilation_sizes"),
        slope=node.number("lrelu_slope"),
        limit=node.number("audio_limit"),
        pitch_channels=pitch.whole("cond_channels"),
    )
    for part in (fft, pitch, node):
        part.end()
    _check_hift(sizes)
    return sizes


def _check_hift(sizes: HiftSizes) -> None:
    hop = sizes.fft_hop
    for rate in sizes.rates:
        hop *= rate
    if hop != HOP:
        raise UserError(f"hift makes {hop} samples of a mel frame, implemented is {HOP}")
    stages = len(sizes.rates)
    if not len(sizes.kernels) == len(sizes.source_kernels) == len(sizes.source_dilations) == stages:
        raise UserError(f"hift has {stages} upsample_rates, wanted as many kernels of each kind")
    if len(sizes.block_kernels) != len(sizes.block_dilations):
        raise UserError("hift.resblock_dilation_sizes and resblock_kernel_sizes differ in length")
    if sizes.fft % sizes.fft_hop or sizes.channels % 2**stages:
        raise UserError(
            f"hift has n_fft {sizes.fft} and {sizes.channels} base_channels, wanted multiples of "
            f"{sizes.fft_hop} and {2**stages}"
        )
    for rate, kernel in zip(sizes.rates, sizes.kernels, strict=True):
        if kernel < rate or (kernel - rate) % 2:
            raise UserError(f"hift upsamples by {rate} with kernel {kernel}, wanted an even excess")
