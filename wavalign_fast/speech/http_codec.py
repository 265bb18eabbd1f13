"""A codec behind an address."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from wavalign_fast.errors import UserError, one_line, shorten, shown
from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.speech.codec import CodecError
from wavalign_fast.speech.foreign import CodecFacts, ForeignCodec
from wavalign_fast.speech.wire import FORMATS, from_text, to_text


class HttpCodec(ForeignCodec):
    """Asks a service, which speaks JSON.

    ``POST URL/encode`` with ``{"waves": [{"sample_rate": Hz, "format": F, "data": base64}]}`` has
    the reply ``{"codes": [[int, …]]}``; ``POST URL/decode`` with ``{"codes": [[int, …], …]}`` has
    ``{"waves": [{"sample_rate": Hz, "format": F, "data": base64}, …]}``. A format is "float32" or
    "pcm16", little-endian, one channel. Each wave must be what its codes give alone.

    Args:
        url: of the service, without ``/encode``.
        codebook_size: number of codes.
        codes_per_second: of a wave.
        sample_rate: of decoded waves, in Hz; a reply with another one is refused.
        channel: which channel to encode.
        format: of the waves that are sent.
        batch_size: most sequences in one request.
        timeout_s: seconds that the service may be silent.
        version: told apart by caches; change it when the service's weights change.

    Raises:
        UserError: an argument is not as described.
    """

    def __init__(
        self,
        *,
        url: str,
        codebook_size: int,
        codes_per_second: float,
        sample_rate: int,
        channel: ChannelRule = "mean",
        format: str = "float32",
        batch_size: int = 16,
        timeout_s: float = 300.0,
        version: str = "",
    ) -> None:
        parts = urlsplit(url)
        # User and password of an address do not belong into errors.
        name = f"http {parts.hostname}:{parts.port}" if parts.port else f"http {parts.hostname}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"http: url is {shown(parts.geturl())}, wanted http://HOST[:PORT][/PATH]"
            )
        if format not in FORMATS:
            raise UserError(f"{name}: format is {shown(format)}, wanted {' or '.join(FORMATS)}")
        if timeout_s <= 0:
            raise UserError(f"{name}: timeout_s is {timeout_s}, wanted above 0")
        place = f"{parts.hostname}:{parts.port}{parts.path}"
        identity = json.dumps(["http", place, format, version])
        super().__init__(name, identity=identity, channel=channel, batch_size=batch_size)
        self._url, self._format, self._timeout_s = url.rstrip("/"), format, timeout_s
        self._facts = CodecFacts(
            codebook_size=codebook_size, codes_per_second=codes_per_second, sample_rate=sample_rate
        )
        self._facts.check(name)

    @property
    def facts(self) -> CodecFacts:
        """As given."""
        return self._facts

    def _encoded(self, wave: Tensor, sample_rate: int) -> Any:
        text = to_text(wave, self._format)
        sent = {"sample_rate": int(sample_rate), "format": self._format, "data": text}
        return self._list("encode", {"waves": [sent]}, "codes", 1)[0]

    def _decoded(self, codes: list[Tensor]) -> Any:
        sent = {"codes": [row.tolist() for row in codes]}
        return [self._wave(wave) for wave in self._list("decode", sent, "waves", len(codes))]

    def _wave(self, wave: Any) -> Tensor:
        try:
            rate, form, data = wave["sample_rate"], wave["format"], wave["data"]
            decoded: Tensor = from_text(data, form)
        except (KeyError, TypeError, ValueError) as error:
            wanted = 'wanted {"sample_rate", "format", "data"}'
            raise CodecError(f"{self.name}: a wave is {shown(wave)}, {wanted}") from error
        if rate != self._facts.sample_rate:
            wanted = f"wanted {self._facts.sample_rate}"
            raise CodecError(f"{self.name}: decoded to {shown(rate)} Hz, {wanted}")
        return decoded

    def _list(self, what: str, content: Mapping[str, Any], key: str, count: int) -> list[Any]:
        """Posts a request and returns the list ``key`` of its reply."""
        reply = self._posted(what, json.dumps(content).encode())
        found = reply.get(key) if isinstance(reply, dict) else None
        if not isinstance(found, list) or len(found) != count:
            wanted = f"wanted {{{json.dumps(key)}: a list of {count}}}"
            raise CodecError(f"{self.name}: /{what} replied {shown(reply)}, {wanted}")
        return found

    def _posted(self, what: str, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/{what}", body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            said = shorten(" ".join(error.read(500).decode(errors="replace").split()), 200)
            raise CodecError(f"{self.name}: /{what} replied status {error.code}: {said}") from error
        except TimeoutError as error:
            waited = f"nothing came for {self._timeout_s:g} s"
            raise CodecError(f"{self.name}: /{what}: {waited}") from error
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            text = one_line(cause) if isinstance(cause, BaseException) else str(cause)
            raise CodecError(f"{self.name}: /{what} cannot be asked: {text}") from error
        except ValueError as error:
            raise CodecError(f"{self.name}: /{what} replied no JSON: {one_line(error)}") from error
