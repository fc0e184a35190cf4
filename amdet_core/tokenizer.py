"""CLIP's byte-pair encoding, with the vocabulary that open_clip_torch or ComfyUI ships.

The normaliser and the pre-tokeniser are those of transformers' ``CLIPTokenizer``: NFC, white space
collapsed, lower case, one piece per word, per digit and per run of other characters, bytes below.
Homoglyphs, zero-width characters and emoji are therefore seen exactly as the image models see them.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from .errors import ConfigError, StorageError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MERGES = 49152 - 256 - 2
"""Merges that CLIP uses out of the file's 262,000: vocabulary 49,408 = 512 bytes + merges + 2."""
VOCABULARIES = {"open_clip": "bpe_simple_vocab_16e6.txt.gz", "comfy": "sd1_tokenizer/merges.txt"}
"""Package -> file with CLIP's merges in it; both hold the same ones. A host that lacks open_clip is ComfyUI."""
_PIECES = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token ids of several prompts.

    Attributes:
        ids: ``(B, T)`` int64, BOS first, EOS behind the last token, padding behind that.
        eos: ``(B,)`` int64, position of each prompt's first EOS.
    """

    ids: Tensor
    eos: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(self.ids.to(device), self.eos.to(device))


class ClipTokenizer:
    """Byte-pair encoding of prompts; frozen, safe to share between encoders.

    Args:
        merges: pairs in order of priority, for example from :func:`read_merges`.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        alphabet = list(_byte_alphabet().values())
        tokens = alphabet + [symbol + WORD_END for symbol in alphabet]
        tokens += ["".join(pair) for pair in merges] + [BOS, EOS]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        self.bos_id, self.eos_id = vocabulary[BOS], vocabulary[EOS]
        self._tokens = tuple(tokens)
        self._bpe = Tokenizer(
            models.BPE(vocab=vocabulary, merges=list(merges), end_of_word_suffix=WORD_END, unk_token=EOS)
        )
        self._bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._bpe.add_special_tokens([BOS, EOS])

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS and EOS.

        Raises:
            ConfigError: the text holds half a surrogate pair, which stands for no character.
        """
        try:
            return list(self._bpe.encode(text, add_special_tokens=False).ids)
        except TypeError as error:
            raise ConfigError("text of whole characters", ascii(text)[:120], "Remove the lone surrogates.") from error

    def places(self, text: str, part: str) -> list[int]:
        """Which tokens of a text, counted from 0, hold a piece of any occurrence of ``part``."""
        if not part:
            return []
        starts = [start for start, _ in self._bpe.encode(text, add_special_tokens=False).offsets]
        # A token reaches to where the next begins: what follows a letter and combines with it is its own.
        stops = [min((later for later in starts if later > start), default=len(text)) for start in starts]
        found = [match.span() for match in re.finditer(re.escape(part), text)]
        spans = enumerate(zip(starts, stops, strict=True))
        return [i for i, (start, stop) in spans if any(a < stop and start < b for a, b in found)]

    def pieces(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """Tokens in the smallest runs that stand for whole characters; most are one token."""
        pieces: list[tuple[int, ...]] = []
        run: tuple[int, ...] = ()
        for index in ids:
            run += (index,)
            try:
                self._raw(run).decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    continue
            pieces.append(run)
            run = ()
        return [*pieces, run] if run else pieces

    def chunks(self, ids: Sequence[int], size: int) -> list[list[int]]:
        """Tokens in parts of at most ``size``, one at least; a word that fits into a part is not cut in two."""
        parts: list[list[int]] = [[]]
        word: list[int] = []
        for place, index in enumerate(ids):
            word.append(index)
            if self._tokens[index].endswith(WORD_END) or len(word) == size or place == len(ids) - 1:
                if len(parts[-1]) + len(word) > size:
                    parts.append([])
                parts[-1] += word
                word = []
        return parts

    def token(self, index: int) -> str:
        """The vocabulary's own spelling of a token, with ``</w>`` where it ends a word."""
        return self._tokens[index]

    def spelling(self, index: int) -> str:
        """The vocabulary's spelling of a token, whether or not it ends a word."""
        return self._tokens[index].removesuffix(WORD_END)

    @cached_property
    def _bytes(self) -> dict[str, int]:
        return {symbol: byte for byte, symbol in _byte_alphabet().items()}

    def text(self, ids: Sequence[int]) -> str:
        """Readable text of tokens; bytes that are no valid UTF-8 become U+FFFD."""
        return self._raw(ids).decode("utf-8", errors="replace").strip()

    def _raw(self, ids: Sequence[int]) -> bytes:
        spelled = "".join(self._tokens[i] for i in ids if i not in (self.bos_id, self.eos_id))
        return bytes(self._bytes[c] for c in spelled.replace(WORD_END, _byte_alphabet()[32]))

    def writable(self, ids: Sequence[int]) -> bool:
        """Whether a prompt can hold these tokens side by side, at the end of a word or in front of more of it.

        Few sequences are: bytes that make no character, and parts that are merged otherwise, stand in no prompt.
        """
        text, ids = self.text(ids), list(ids)
        return "\ufffd" not in text and (ids == self.encode(text) or ids == self.encode(text + "a")[:-1])

    def files(self) -> dict[str, str]:
        """Contents of ``vocab.json`` and ``merges.txt``, from which transformers makes the same tokenizer."""
        merges = json.loads(self._bpe.to_str())["model"]["merges"]
        lines = [one if isinstance(one, str) else " ".join(one) for one in merges]
        vocabulary = {token: index for index, token in enumerate(self._tokens)}
        return {
            "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
            "merges.txt": "\n".join(("#version: 0.2", *lines, "")),
        }

    def words(self) -> tuple[str, ...]:
        """Texts of all tokens that end a word, sorted."""
        return tuple(sorted({self.text([i]) for i, token in enumerate(self._tokens) if token.endswith(WORD_END)}))

    def batch(
        self, prompts: Sequence[str], *, limit: int, pad: int | None = None, length: int | None = None
    ) -> TokenBatch:
        """Encode prompts to one tensor.

        Args:
            prompts: any texts; an empty one becomes BOS EOS.
            limit: most positions a prompt may take, BOS and EOS included; longer ones are cut.
            pad: id behind EOS; the EOS id where None.
            length: positions to pad to; the longest prompt where None.

        Raises:
            ConfigError: no prompts were given.
        """
        if not prompts:
            raise ConfigError("at least one prompt", "none", "Give prompts, or use the built-in set.")
        return self.batch_ids([self.encode(prompt) for prompt in prompts], limit=limit, pad=pad, length=length)

    def batch_ids(
        self, rows: Sequence[Sequence[int]], *, limit: int, pad: int | None = None, length: int | None = None
    ) -> TokenBatch:
        """The same for prompts that are token ids already, without BOS and EOS."""
        cut = [row[: limit - 2] for row in rows]
        columns = length or max(len(row) for row in cut) + 2
        ids = torch.full((len(rows), columns), self.eos_id if pad is None else pad, dtype=torch.int64)
        for i, row in enumerate(cut):
            ids[i, : len(row) + 2] = torch.tensor([self.bos_id, *row, self.eos_id])
        # the first one: a prompt may spell EOS out, and the encoders pool there
        eos = (ids == self.eos_id).int().argmax(dim=1)
        return TokenBatch(ids, eos)


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Merges of a ``bpe_simple_vocab_16e6.txt.gz`` or a ``merges.txt`` file.

    Raises:
        StorageError: the file can't be read or holds fewer merges than CLIP uses.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise StorageError("CLIP's merges file", f"{path}: {error}", f"Reinstall {path.parent.name}.") from error
    pairs = [line.split() for line in text.splitlines()[1 : 1 + MERGES]]
    if len(pairs) != MERGES or any(len(pair) != 2 for pair in pairs):
        raise StorageError(f"{MERGES} merges", f"{len(pairs)} in {path}", f"Reinstall {path.parent.name}.")
    return [(left, right) for left, right in pairs]


@cache
def clip_tokenizer(merges: Path | None = None) -> ClipTokenizer:
    """The tokenizer of every CLIP: from a given merges file, else from an installed one.

    Raises:
        StorageError: there is no merges file to be found.
    """
    return ClipTokenizer(read_merges(merges or _installed_merges()))


def _installed_merges() -> Path:
    """Path of the vocabulary inside a package that ships it, found without importing that package."""
    for package, file in VOCABULARIES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder, file)).is_file():
                return path
    raise StorageError(
        "CLIP's vocabulary, as open_clip_torch ships it", "none installed", "Run: pip install open_clip_torch"
    )


@cache
def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable symbol for every byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
