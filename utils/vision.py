"""Pictures and clips as tokens: miniatures of LLaVA (a language model that sees) and of VideoPoet (one that draws clips).

The design choices:
- Pictures are drawn by code from a scene, clips from a shape, a colour and a motion. So every question has a known answer,
  and what a clip shows is read back from its pixels (`parse`): no judge.
- Some combinations (a thing and a colour; a shape, a colour and a motion) are never drawn for any training.
- A patch is a token in the plain sense: it has an id, after the words' ids. In `Seeing` the id leads to a row of frozen
  features, projected into the language model's embedding space; in a clip it names an entry of a codebook, and is predicted.
  So `training.train` and `decoding.sample` serve here as they are.
"""

import io
import random
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import LlamaConfig, LlamaForCausalLM

from utils import decoding, models, training

WEIGHTS = Path(__file__).parents[1] / "data" / "vision"
RGB = dict(red=(213, 40, 40), blue=(30, 80, 220), green=(20, 150, 60), yellow=(245, 215, 30))
RGB |= dict(black=(15, 15, 15), white=(255, 255, 255), pink=(255, 130, 190), brown=(125, 75, 30))
GROUND = (196, 202, 205)


def _bitmaps(drawn: str) -> dict[str, np.ndarray]:
    """Bitmaps (size, size) by name, from lines of names and lines of # and dots, side by side."""
    rows = [line.split() for line in drawn.strip().splitlines()]
    names, rows = rows[0], rows[1:]
    return {name: np.array([[c == "#" for c in row[i]] for row in rows]) for i, name in enumerate(names)}


THINGS = _bitmaps("""
cat     bird    turtle  rabbit  boat    hammer  ball    robot
#.....#  ...##..  .......  .#...#.  ...#...  .#####.  ..###..  ...#...
##...##  ..####.  ..###..  .#...#.  ...##..  .######  .#####.  .#####.
#######  #.##.##  .#####.  .##.##.  ...###.  .#####.  #######  .#.#.#.
#.###.#  ######.  .####.#  .#####.  ...####  ...#...  #######  .#####.
#######  .#####.  #######  .#.#.#.  ...#...  ...#...  #######  ...#...
.##.##.  ..###..  ######.  .#####.  #######  ...#...  .#####.  #######
..###..  ..#.#..  .#..#..  ..###..  .#####.  ...#...  ..###..  #.###.#
""")
HELD = set(zip(THINGS, RGB, strict=True))  # a thing in a colour that no training shows
CELL, GRID = 8, 3  # pixels of a cell, cells of a side; a cell is a patch
PATCHES = GRID * GRID
RUNG, TEST = "800k", 1000  # of the ladder; the seed of all test pictures


# ---- Pictures ------------------------------------------------------------------------------------------------------


def scenes(split: str, number: int, seed: int) -> list[dict]:
    """Scenes: for "left" and "right" a number, a colour and a thing; of HELD alone in "combinations", of the others elsewhere."""
    rng = random.Random(f"{split} {seed}")
    known = [pair for pair in product(THINGS, RGB) if (pair in HELD) == (split == "combinations")]
    found = []
    while len(found) < number:
        (thing, colour), (other, second) = rng.sample(known, 2)
        if thing != other and colour != second:
            groups = [dict(number=rng.randint(1, 3), colour=c, thing=t) for t, c in ((thing, colour), (other, second))]
            found.append(dict(zip(("left", "right"), groups, strict=True)))
    return found


def draw(scene: dict, rng: np.random.Generator) -> np.ndarray:
    """A picture, (24, 24, 3) from 0 to 1: the two groups stand in two of three columns, each thing a little out of place."""
    picture = np.tile(np.float32(GROUND), (GRID * CELL, GRID * CELL, 1))
    for column, group in zip(sorted(rng.choice(GRID, 2, replace=False)), scene.values(), strict=True):
        for row in rng.choice(GRID, group["number"], replace=False):
            y, x = CELL * np.array([row, column]) + rng.integers(2, size=2)
            picture[y : y + 7, x : x + 7][THINGS[group["thing"]]] = RGB[group["colour"]]
    return (picture * rng.uniform(0.85, 1) + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.float32) / 255


def caption(scene: dict) -> str:
    words = [f"{g['number']} {g['colour']} {g['thing']}{'s' * (g['number'] > 1)} on the {s}" for s, g in scene.items()]
    return ", ".join(words) + "."


def questions(scene: dict) -> list[dict]:
    """All questions about a scene: kind, prompt, answer."""
    asked = []
    for side, group in scene.items():
        number, colour, thing = group.values()
        asked.append(dict(kind="colour", prompt=f"What is the colour of the {thing}?", answer=colour))
        asked.append(dict(kind="number", prompt=f"How many {thing}s are there?", answer=str(number)))
        asked.append(dict(kind="thing", prompt=f"Which thing is {colour}?", answer=thing))
        asked.append(dict(kind="side", prompt=f"Which thing is on the {side}?", answer=thing))
    return asked


def album(split: str, number: int, seed: int) -> tuple[list[dict], Tensor]:
    """Scenes and their pictures, (number, 3, 24, 24)."""
    found, rng = scenes(split, number, seed), np.random.default_rng(seed)
    return found, torch.tensor(np.stack([draw(scene, rng) for scene in found])).permute(0, 3, 1, 2).contiguous()


# ---- An encoder, trained on pictures and captions (CLIP), then frozen ----------------------------------------------


def encoder(width: int = 64) -> nn.Sequential:
    """Pictures (n, 3, 24, 24) -> features of 3 x 3 patches, (n, width, 3, 3): each from its 8 x 8 pixels and those around them."""
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.GELU()]
    for into, out in ((32, 48), (48, 64), (64, width)):
        layers += [nn.Conv2d(into, out, 2, stride=2), nn.GroupNorm(4, out), nn.GELU()]
    return nn.Sequential(*layers)


def contrast(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss: of n pictures and n captions (n, width each), which belongs to which? Both ways, in nats."""
    logits = scale * normalize(images, dim=-1) @ normalize(texts, dim=-1).T  # (n, n): cosines, times the scale
    own = torch.arange(len(logits))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def train_encoder(pictures: Tensor, captions: list[list[int]], steps: int = 400, seed: int = 0, batch: int = 256):
    """(encoder, losses): captions are token ids, read by a bag of embeddings, which is thrown away afterwards."""
    torch.manual_seed(seed)
    seeing, texts, head = encoder(), nn.EmbeddingBag(2048, 128), nn.Linear(64 * PATCHES, 128)
    scale = nn.ParameterList([torch.tensor(10.0).log()])
    optimizer, losses = training.adamw(nn.ModuleList([seeing, texts, head, scale]), 0.01), []
    for step in range(steps):
        chosen = training.picks(step, batch, len(pictures), seed)
        words = [torch.tensor(captions[i]) for i in chosen.tolist()]
        starts = torch.tensor([0, *map(len, words[:-1])]).cumsum(0)
        images = head(seeing(pictures[chosen]).flatten(1))
        loss = contrast(images, texts(torch.cat(words), starts), scale[0].exp().clamp(max=100))
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step, steps, 3e-3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return seeing.eval().requires_grad_(False), losses


@torch.inference_mode()
def features(seeing: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (n, 3, 24, 24) -> (n, 9, 64): the frozen encoder's features, patch by patch."""
    found = torch.cat([seeing(part) for part in pictures.split(512)]).flatten(2).transpose(1, 2)
    return nn.functional.layer_norm(found, found.shape[-1:])


# ---- A language model that sees (LLaVA) -----------------------------------------------------------------------------


class Seeing(nn.Module):
    """A language model and a projection. An id beyond the vocabulary is a patch: a row of `table` (patches, 64), which is fixed."""

    def __init__(self, model: LlamaForCausalLM, table: Tensor):
        super().__init__()
        self.model, self.table = model, table
        self.projection = nn.Linear(table.shape[1], model.config.hidden_size)

    def forward(self, input_ids: Tensor, **options):
        words, first = self.model.get_input_embeddings(), self.model.config.vocab_size
        patch = input_ids >= first
        embedded = words(input_ids.masked_fill(patch, 0)).clone()  # (rows, tokens, hidden)
        embedded[patch] = self.projection(self.table[input_ids[patch] - first])
        return self.model(inputs_embeds=embedded, **options)


def gallery(seed: int, train: int = 4000, test: int = 150) -> tuple[Tensor, dict[str, list[dict]]]:
    """Pictures (n, 3, 24, 24) of all splits, and the questions of each split, with the number of their picture.

    Test pictures are the same for every seed: new pictures of known combinations, and pictures of HELD. "captions" asks for
    the captions of the training pictures.
    """
    drawn, asked, first = [], {}, 0
    for split, number, drawing in (("train", train, seed), ("pictures", test, TEST), ("combinations", test, TEST)):
        found, pictures = album(split, number, drawing)
        drawn.append(pictures)
        asked[split] = [q | dict(picture=first + i) for i, scene in enumerate(found) for q in questions(scene)]
        if split == "train":
            what = dict(kind="caption", prompt="What is in the picture?")
            asked["captions"] = [what | dict(answer=caption(scene), picture=i) for i, scene in enumerate(found)]
        first += number
    return torch.cat(drawn), asked


def question_rows(tokenizer, asked: list[dict], form: str = "both") -> tuple[Tensor, Tensor]:
    """(ids, labels) as `training.supervised` makes them, the 9 patches of the picture after the first token.

    Form "question only" leaves the patches out, "picture only" the question.
    """
    said = ["" if form == "picture only" else q["prompt"] for q in asked]
    ids, labels = training.supervised(tokenizer, said, [q["answer"] for q in asked])
    if form == "question only":
        return ids, labels
    picture = torch.tensor([q["picture"] for q in asked])[:, None]
    patches = len(tokenizer) + PATCHES * picture + torch.arange(PATCHES)
    none = torch.full_like(patches, -100)
    return tuple(torch.cat([t[:, :1], new, t[:, 1:]], dim=1) for t, new in ((ids, patches), (labels, none)))


def learn_captions(seeing: Seeing, tokenizer, asked: dict, steps: int = 100, seed: int = 0, **options) -> list[dict]:
    """LLaVA's first stage: the projection alone learns, from captions."""
    seeing.model.requires_grad_(False)
    ids, labels = question_rows(tokenizer, asked["captions"])
    given = dict(batch=32, rows=32, peak=5e-3, weight_decay=0.0, progress=False) | options
    return training.train(seeing, ids, labels, steps=steps, seed=seed, **given)


def learn_answers(
    seeing: Seeing,
    tokenizer,
    asked: dict,
    steps: int = 300,
    seed: int = 0,
    form: str = "both",
    tune: bool = True,
    **options,
) -> list[dict]:
    """LLaVA's second stage: projection and language model (unless `tune` is False) learn, from questions and answers."""
    seeing.model.requires_grad_(tune)
    ids, labels = question_rows(tokenizer, asked["train"], form)
    given = dict(batch=64, rows=64, peak=2e-3, weight_decay=0.01, progress=False) | options
    return training.train(seeing, ids, labels, steps=steps, seed=seed, **given)


@torch.inference_mode()
def right(seeing: Seeing, tokenizer, asked: list[dict], form: str = "both") -> np.ndarray:
    """Whether greedy decoding writes exactly the answer and ends, (n,): each of its tokens is the likeliest after the true ones."""
    ids, labels = question_rows(tokenizer, asked, form)
    guessed = torch.cat([seeing(input_ids=part[:, :-1]).logits.argmax(-1) for part in ids.split(256)])
    return ((guessed == labels[:, 1:]) | (labels[:, 1:] == -100)).all(1).numpy()


def another(asked: list[dict]) -> list[dict]:
    """The same questions, each with the next picture of its split."""
    first, last = asked[0]["picture"], asked[-1]["picture"]
    return [q | dict(picture=q["picture"] + 1 if q["picture"] < last else first) for q in asked]


OPTIONS = dict(colour=list(RGB), thing=list(THINGS), side=list(THINGS), number=["1", "2", "3"])


@torch.inference_mode()
def chances(seeing: Seeing, tokenizer, question: dict, form: str = "both") -> dict[str, float]:
    """What the model gives each possible answer, as a share of what it gives them all together."""
    ids, labels = question_rows(tokenizer, [question], form)
    place = (labels[0] != -100).nonzero()[-2]  # of the answer's last token; the end of the text follows
    logits = seeing(input_ids=ids[:, :place]).logits[0, -1]
    last = [tokenizer(" " + option).input_ids[-1] for option in OPTIONS[question["kind"]]]
    return dict(zip(OPTIONS[question["kind"]], logits[last].softmax(-1).tolist(), strict=True))


ARMS = {
    "both stages": {},
    "question only": dict(form="question only"),
    "picture only": dict(form="picture only"),
    "without the captions": dict(captions=0),
    "language model frozen": dict(tune=False),
}


def arm(name: str, seed: int, steps: int = 300, test: int = 150) -> list[dict]:
    """One of ARMS: train on pictures of `seed`, then ask about held-out ones; a row for each picture and kind of question.

    `right`: share of the picture's questions of the kind that are answered rightly; `other`: with another picture's patches.
    """
    options = dict(ARMS[name])
    captions, form = options.pop("captions", 100), options.get("form", "both")
    model, tokenizer = models.load(f"ladder/{RUNG}")
    pictures, asked = gallery(seed, test=test)
    torch.manual_seed(seed)
    seeing = Seeing(model, features(stored_encoder(), pictures).flatten(0, 1))
    if captions and form != "question only":
        learn_captions(seeing, tokenizer, asked, captions, seed)
    learn_answers(seeing, tokenizer, asked, steps, seed, **options)
    found = []
    for split in ("pictures", "combinations"):
        hits = (
            right(seeing.eval(), tokenizer, asked[split], form),
            right(seeing, tokenizer, another(asked[split]), form),
        )
        table = pd.DataFrame(asked[split]).assign(right=hits[0].astype(float), other=hits[1].astype(float))
        means = table.groupby(["picture", "kind"], as_index=False)[["right", "other"]].mean()
        found += means.assign(seed=seed, arm=name, split=split).to_dict("records")
    return found


def keep(name: str, tensors: dict[str, Tensor]) -> None:
    """Write data/vision/NAME.safetensors, in half precision."""
    WEIGHTS.mkdir(exist_ok=True)
    save_file({key: tensor.half().contiguous() for key, tensor in tensors.items()}, WEIGHTS / f"{name}.safetensors")


def stored(name: str) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in load_file(WEIGHTS / f"{name}.safetensors").items()}


@lru_cache(maxsize=1)
def stored_encoder() -> nn.Module:
    """The encoder that `python -m utils.runs pictures` trained, frozen."""
    seeing = encoder()
    seeing.load_state_dict(stored("encoder"))
    return seeing.eval().requires_grad_(False)


# ---- Clips ----------------------------------------------------------------------------------------------------------

FRAMES, SIDE, PATCH = 5, 16, 4  # frames of a clip, pixels of a side, pixels of a patch
TILES = (SIDE // PATCH) ** 2  # patches of a frame
SHAPES = _bitmaps("""
square cross triangle ring
###### ..##.. ..##.. .####.
###### ..##.. ..##.. ##..##
###### ###### .####. #....#
###### ###### .####. #....#
###### ..##.. ###### ##..##
###### ..##.. ###### .####.
""")
HUES = ("red", "blue", "green", "yellow", "black", "white")
MOTIONS = dict(left=(0, -2), right=(0, 2), up=(-2, 0), down=(2, 0))  # pixels a frame: down, right
ASKED = list(product(SHAPES, HUES, MOTIONS))  # everything a prompt can ask for
# Never trained on. Any two of the three were seen together: a codebook of pixels has no entry for a shape in a new colour.
NEW = [asked for i, asked in enumerate(ASKED) if (i // 24 + i // 4 % 6 + i % 4) % 6 == 0]
WORDS = ["<begin>", "<end>", "a", *HUES, *SHAPES, "moves", *MOTIONS]  # ids 0, 1, ...; the codebook's entries follow


def film(shape: str, colour: str, motion: str, rng: np.random.Generator) -> np.ndarray:
    """A clip, (5, 16, 16, 3) from 0 to 1: the shape starts at a random place from which it stays in sight."""
    frames = np.tile(np.float32(GROUND), (FRAMES, SIDE, SIDE, 1))
    move, size = np.array(MOTIONS[motion]), len(SHAPES[shape])
    way = (FRAMES - 1) * move
    low, high = -way.clip(max=0), SIDE - size - way.clip(min=0)
    place = 2 * rng.integers(low // 2, high // 2 + 1)
    for frame in frames:
        frame[place[0] : place[0] + size, place[1] : place[1] + size][SHAPES[shape]] = RGB[colour]
        place = place + move
    return (frames + rng.normal(0, 4, frames.shape)).clip(0, 255).astype(np.float32) / 255


def films(asked: list[tuple], number: int, seed: int) -> tuple[list[tuple], np.ndarray]:
    """`number` clips of what `asked` lists, in a random order: (what each shows, (number, 5, 16, 16, 3))."""
    rng = np.random.default_rng(seed)
    shown = [asked[i] for i in rng.permutation(np.arange(number) % len(asked))]
    return shown, np.stack([film(*what, rng) for what in shown])


def tiles(clips: np.ndarray) -> np.ndarray:
    """Clips (n, frames, 16, 16, 3) -> patches (n, frames * 16, 48), row by row; `untile` is the way back."""
    n, k = len(clips), SIDE // PATCH
    return clips.reshape(n, -1, k, PATCH, k, PATCH, 3).swapaxes(3, 4).reshape(n, -1, PATCH * PATCH * 3)


def untile(patches: np.ndarray) -> np.ndarray:
    n, k = len(patches), SIDE // PATCH
    return patches.reshape(n, -1, k, k, PATCH, PATCH, 3).swapaxes(3, 4).reshape(n, -1, SIDE, SIDE, 3)


def codebook(clips: np.ndarray, entries: int = 256, seed: int = 0) -> np.ndarray:
    """The k-means centres of the clips' patches, (entries, 48). One entry is left to the empty patches, which differ only in noise."""
    patches = tiles(clips).reshape(-1, 3 * PATCH**2)
    shown = np.abs(patches - np.float32(GROUND * PATCH**2) / 255).max(1) > 0.15
    found = KMeans(entries - 1, n_init=1, max_iter=20, random_state=seed).fit(patches[shown]).cluster_centers_
    return np.concatenate([patches[~shown].mean(0, keepdims=True), found]).astype(np.float32)


def encode(clips: np.ndarray, codes: np.ndarray) -> Tensor:
    """Clips (n, frames, 16, 16, 3) -> the nearest entry of each patch, (n, frames * 16)."""
    patches = torch.tensor(tiles(clips))
    distance = torch.tensor(codes).square().sum(1) - 2 * patches @ torch.tensor(codes).T  # up to the patch's own square
    return distance.argmin(-1)


def decode(ids: Tensor, codes: np.ndarray) -> np.ndarray:
    """Entries (n, frames * 16) -> clips."""
    return untile(codes[ids.numpy()])


def prompts(asked: list[tuple]) -> Tensor:
    """What to show -> ids of "<begin> a red square moves left", (n, 6)."""
    texts = [("<begin>", "a", colour, shape, "moves", motion) for shape, colour, motion in asked]
    return torch.tensor([[WORDS.index(word) for word in text] for text in texts])


def clip_rows(asked: list[tuple], clips: np.ndarray, codes: np.ndarray) -> Tensor:
    """Training rows: the prompt's ids, the patches' and the end's, (n, 6 + 80 + 1)."""
    end = torch.full((len(asked), 1), WORDS.index("<end>"))
    return torch.cat([prompts(asked), len(WORDS) + encode(clips, codes), end], dim=1)


def painter(entries: int = 256, width: int = 96, layers: int = 3, seed: int = 0) -> LlamaForCausalLM:
    """A small Llama over words and patches."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + entries,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=3,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.5 / width**0.5,
    )
    return LlamaForCausalLM(config)


@torch.inference_mode()
def paint(
    model: LlamaForCausalLM, asked: list[tuple], codes: np.ndarray, seed: int = 0, temperature: float = 1.0
) -> np.ndarray:
    """Clips that the model draws to prompts, patch after patch; a word where a patch belongs is drawn as the first entry."""
    ids, draw = prompts(asked), torch.Generator().manual_seed(seed)
    made = decoding.sample(model, ids, FRAMES * TILES, temperature, generator=draw, ignore_eos=True)[:, ids.shape[1] :]
    return decode((made - len(WORDS)).clamp(min=0), codes)


def parse(clips: np.ndarray, least: float = 0.8) -> list[tuple]:
    """What each clip shows, read from its pixels: (shape, colour, motion), None where that cannot be said.

    Shape and colour must be the same in all frames: of the bitmap that overlaps best (intersection over union of at least
    `least`), and of the nearest colour. A motion is one that carries the middle of the shape from frame to frame within a pixel.
    """
    found = []
    for clip in clips:
        shapes, colours, middles = zip(*(_look(frame, least) for frame in clip), strict=True)
        same = [seen[0] if len(set(seen)) == 1 else None for seen in (shapes, colours)]
        steps = np.diff(middles, axis=0)  # (frames - 1, 2)
        moves = [name for name, move in MOTIONS.items() if (np.abs(steps - move) <= 1).all()]
        found.append((*same, moves[0] if moves else None))
    return found


def _look(frame: np.ndarray, least: float):
    """(shape, colour, middle) of what is on a frame."""
    mask = np.abs(frame - np.float32(GROUND) / 255).max(-1) > 0.12
    if not mask.any():
        return None, None, np.full(2, np.nan)
    y, x = np.nonzero(mask)
    colour = min(HUES, key=lambda hue: np.abs(np.median(frame[mask], 0) * 255 - RGB[hue]).sum())
    cut = np.zeros((SIDE + 6, SIDE + 6), bool)
    cut[: SIDE - y.min(), : SIDE - x.min()] = mask[y.min() :, x.min() :]
    box = np.zeros_like(cut)
    overlap = {}
    for name, bitmap in SHAPES.items():
        box[:6, :6] = bitmap
        overlap[name] = (cut & box).sum() / (cut | box).sum()
    best = max(overlap, key=overlap.get)
    middle = np.array([y.min() + y.max(), x.min() + x.max()]) / 2
    return best if overlap[best] >= least else None, colour, middle


def animation(clips: list[np.ndarray], zoom: int = 5, seconds: float = 0.35, numbered: bool = False) -> bytes:
    """Clips of equal size, side by side, as an animated PNG: image/png is shown wherever notebooks are, image/gif is not.

    `numbered` writes 1, 2, ... above them. Where animated PNGs are not known (in a PDF) the first frame is seen.
    """
    above = 6 if numbered else 1  # white pixels
    padded = [np.pad(clip, ((0, 0), (above, 1), (1, 1), (0, 0)), constant_values=1) for clip in clips]
    big = (255 * np.concatenate(padded, axis=2).clip(0, 1)).round().astype(np.uint8).repeat(zoom, 1).repeat(zoom, 2)
    frames = [Image.fromarray(frame) for frame in big]
    for frame in frames if numbered else ():
        for n in range(len(clips)):
            middle = (n + 0.5) * frame.width / len(clips)
            ImageDraw.Draw(frame).text((middle, 0), str(n + 1), "black", anchor="ma", font_size=5 * zoom)
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0)
    return file.getvalue()


@lru_cache(maxsize=1)
def stored_painter() -> tuple[LlamaForCausalLM, np.ndarray]:
    """(model, codebook) that `python -m utils.runs clips` trained with seed 0."""
    tensors = stored("painter")
    codes = tensors.pop("codes").numpy()
    model = painter(len(codes))
    model.load_state_dict(tensors, strict=False)  # the output layer is the embedding
    return model.eval(), codes


def clip_arm(
    seed: int, steps: int = 800, copies: int = 4
) -> tuple[list[dict], LlamaForCausalLM, np.ndarray, list[dict]]:
    """Train a painter on clips of `seed`, none of them of NEW; ask it for everything: (rows, model, codebook, log).

    A row: what was asked (shape, colour, motion) and what the parser saw (saw_shape, ...; None is unclear).
    """
    shown, clips = films([asked for asked in ASKED if asked not in NEW], 4000, seed)
    codes = codebook(clips[:600], seed=seed)
    model = painter(len(codes), seed=seed)
    log = learn_clips(model, clip_rows(shown, clips, codes), steps, seed)
    asked = ASKED * copies
    seen = parse(paint(model.eval(), asked, codes, seed=TEST + seed))
    names = ("shape", "colour", "motion")
    rows = [
        dict(zip((*names, *(f"saw_{n}" for n in names)), (*a, *s), strict=True))
        for a, s in zip(asked, seen, strict=True)
    ]
    return [row | dict(seed=seed, new=a in NEW) for row, a in zip(rows, asked, strict=True)], model, codes, log


def learn_clips(model: LlamaForCausalLM, ids: Tensor, steps: int, seed: int = 0, **options) -> list[dict]:
    """Next-token prediction on rows (n, 87); the prompt is given, not learned."""
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(ids[0]) - FRAMES * TILES - 1, -100)
    given = dict(batch=32, rows=32, peak=3e-3, weight_decay=0.01, progress=False) | options
    return training.train(model, ids, labels, steps=steps, seed=seed, **given)


def matches(rows: pd.DataFrame, shuffled: int | None = None) -> pd.DataFrame:
    """Whether shape, colour, motion and all three are as asked, (rows, 4); or as in a shuffled list of the prompts (by that seed)."""
    asked = rows[["shape", "colour", "motion"]].to_numpy()
    if shuffled is not None:
        asked = np.random.default_rng(shuffled).permutation(asked)
    hits = asked == rows[["saw_shape", "saw_colour", "saw_motion"]].to_numpy()
    return pd.DataFrame(np.c_[hits, hits.all(1)], columns=["shape", "colour", "motion", "all"], index=rows.index)
