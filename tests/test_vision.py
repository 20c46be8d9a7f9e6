"""Pictures and clips as tokens: nothing held out is drawn, the parser is right, patches stand where words would."""

import io
import time

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from utils import models, plots, runs, vision, widgets

matplotlib.use("agg")
plots.style()


@pytest.fixture(scope="module")
def rung():
    return models.load("ladder/20k")


@pytest.fixture(scope="module")
def gallery():
    return vision.gallery(3, train=40, test=20)


def test_nothing_held_out_is_drawn_for_training():
    for split in ("train", "pictures", "combinations"):
        drawn = {(g["thing"], g["colour"]) for scene in vision.scenes(split, 300, 5) for g in scene.values()}
        assert drawn <= vision.HELD if split == "combinations" else not drawn & vision.HELD
    assert len(vision.NEW) == 16
    known = [what for what in vision.ASKED if what not in vision.NEW]
    for a, b in ((0, 1), (0, 2), (1, 2)):  # any two words of a held-out triple were seen together
        assert {(what[a], what[b]) for what in vision.NEW} <= {(what[a], what[b]) for what in known}
    assert set(vision.films(known, 200, 0)[0]) <= set(known)


def test_a_picture_shows_its_scene():
    """Counted in the pixels: columns with something in them, things of a group, and their colour."""
    found, pictures = vision.album("train", 60, 9)
    for scene, picture in zip(found, pictures.permute(0, 2, 3, 1).numpy(), strict=True):
        cells = picture.reshape(3, 8, 3, 8, 3).swapaxes(1, 2).reshape(3, 3, 64, 3)  # row, column, pixel, colour
        shown = np.abs(cells - np.median(picture, (0, 1))).max(-1) > 0.13
        columns = [column for column in range(3) if shown[:, column].sum() > 10]
        assert len(columns) == 2
        for column, group in zip(columns, scene.values(), strict=True):
            assert (shown[:, column].sum(-1) > 10).sum() == group["number"]
            seen = cells[:, column][shown[:, column]].mean(0) * 255
            assert min(vision.RGB, key=lambda name: np.abs(seen - vision.RGB[name]).sum()) == group["colour"]


def test_answers_follow_from_the_scene_and_are_one_word():
    _, tokenizer = models.load("ladder/800k")
    scene = dict(left=dict(number=2, colour="red", thing="cat"), right=dict(number=1, colour="blue", thing="boat"))
    answers = {q["prompt"]: q["answer"] for q in vision.questions(scene)}
    assert answers["What is the colour of the cat?"] == "red" and answers["How many boats are there?"] == "1"
    assert answers["Which thing is blue?"] == answers["Which thing is on the right?"] == "boat"
    assert vision.caption(scene) == "2 red cats on the left, 1 blue boat on the right."
    assert all(len(tokenizer(f" {word}").input_ids) == 2 for word in [*vision.RGB, *vision.THINGS])


def test_contrast_is_cross_entropy_both_ways():
    images, texts = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    cosines = torch.stack([torch.cosine_similarity(a[None], texts) for a in images])
    own = torch.arange(5)
    by_hand = (cross_entropy(3 * cosines, own) + cross_entropy(3 * cosines.T, own)) / 2
    assert vision.contrast(images, texts, torch.tensor(3.0)).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_patches_stand_where_words_would(rung, gallery):
    """A row without patches is the language model's own; with them, each place gets its picture's projected features."""
    (model, tokenizer), (pictures, asked) = rung, gallery
    seeing = vision.Seeing(model, torch.randn(len(pictures) * 9, 64, generator=torch.Generator().manual_seed(0)))
    ids, labels = vision.question_rows(tokenizer, asked["pictures"][:4])
    words, _ = vision.question_rows(tokenizer, asked["pictures"][:4], "question only")
    with torch.no_grad():
        assert torch.equal(seeing(words).logits, model(words).logits)
        number = asked["pictures"][0]["picture"]
        patches = seeing.projection(seeing.table.view(-1, 9, 64)[number])
        embed = model.get_input_embeddings()
        whole = torch.cat([embed(words[0, :1]), patches, embed(words[0, 1:])])
        assert torch.allclose(seeing(ids[:1]).logits, model(inputs_embeds=whole[None]).logits, atol=1e-5)
    assert (labels[:, :10] == -100).all() and ids.shape[1] == words.shape[1] + 9
    moved = vision.another(asked["pictures"])
    assert all(
        a["picture"] != b["picture"] and a["prompt"] == b["prompt"]
        for a, b in zip(asked["pictures"], moved, strict=True)
    )


def test_stages_train_what_they_should(rung, gallery):
    _, tokenizer = rung
    model = models.load("ladder/20k")[0]
    pictures, asked = gallery
    seeing = vision.Seeing(model, torch.randn(len(pictures) * 9, 64))
    before = {name: p.clone() for name, p in seeing.named_parameters()}
    changed = lambda: {name for name, p in seeing.named_parameters() if not torch.equal(p, before[name])}  # noqa: E731
    vision.learn_captions(seeing, tokenizer, asked, steps=2)
    assert changed() == {"projection.weight", "projection.bias"}
    vision.learn_answers(seeing, tokenizer, asked, steps=2)
    assert changed() == set(before)


def test_right_is_what_greedy_decoding_writes(rung, gallery):
    """After training on a few answers until they are known; against a loop that writes token by token."""
    model, (pictures, asked) = models.load("ladder/20k")[0], gallery
    tokenizer = rung[1]
    seeing = vision.Seeing(model, torch.randn(len(pictures) * 9, 64, generator=torch.Generator().manual_seed(0)))
    few = asked["train"][:24]
    vision.learn_answers(seeing, tokenizer, {"train": few}, steps=60, batch=24, rows=24, peak=1e-2)
    hits = vision.right(seeing.eval(), tokenizer, few)
    assert 0 < hits.mean() < 1 or hits.all()
    ids, labels = vision.question_rows(tokenizer, few)
    with torch.inference_mode():
        for hit, row, label in zip(hits, ids, labels, strict=True):
            places = (label != -100).nonzero()[:, 0]
            text = row[: places[0]]
            for _ in places:
                text = torch.cat([text, seeing(text[None]).logits[0, -1:].argmax(-1)])
            assert hit == torch.equal(text[places], label[places])
    shares = vision.chances(seeing, tokenizer, few[0])
    assert sum(shares.values()) == pytest.approx(1) and list(shares) == list(vision.RGB)


def test_tiles_come_back():
    _, clips = vision.films(vision.ASKED, 3, 0)
    patches = vision.tiles(clips)
    assert patches.shape == (3, 80, 48) and np.array_equal(vision.untile(patches), clips)
    corner = clips[1, 2, 4:8, 8:12].reshape(-1)  # of frame 2: the second row of patches, the third patch
    assert np.array_equal(patches[1, 2 * 16 + 4 + 2], corner)


def test_the_parser_is_right_on_true_clips_and_notices_spoiled_ones():
    asked, clips = vision.films(vision.ASKED, 192, 4)
    assert vision.parse(clips) == asked
    back = vision.parse(clips[:, ::-1])
    assert {(a[2], b[2]) for a, b in zip(asked, back, strict=True)} == {
        ("left", "right"),
        ("right", "left"),
        ("up", "down"),
        ("down", "up"),
    }
    assert all(m is None for *_, m in vision.parse(clips[:, [2, 0, 3, 1, 4]]))
    mixed = np.concatenate([clips[:, :4], np.roll(clips[:, 4:], 1, axis=0)], axis=1)
    for what, last, (shape, colour, _) in zip(asked, np.roll(asked, 1, axis=0), vision.parse(mixed), strict=True):
        assert shape == (what[0] if what[0] == last[0] else None)
        assert colour == (what[1] if what[1] == last[1] else None)
    empty = np.tile(np.float32(vision.GROUND) / 255, (1, 5, 16, 16, 1))
    assert vision.parse(empty) == [(None, None, None)]


def test_codebook_takes_the_nearest_entry():
    asked, clips = vision.films(vision.ASKED, 96, 1)
    codes = vision.codebook(clips, 64)
    ids = vision.encode(clips, codes)
    distance = ((vision.tiles(clips)[:2, :, None] - codes) ** 2).sum(-1)
    assert np.array_equal(ids[:2].numpy(), distance.argmin(-1))
    assert np.array_equal(vision.encode(vision.decode(ids, codes), codes), ids)
    rows = vision.clip_rows(asked, clips, codes)
    assert rows.shape == (96, 87) and [vision.WORDS[i] for i in rows[0, :6]][1] == "a" and (rows[:, -1] == 1).all()


def test_matches_counts_per_row():
    names = ["shape", "colour", "motion", "saw_shape", "saw_colour", "saw_motion"]
    table = [["ring", "red", "up"] * 2, ["ring", "red", "up", "ring", "red", None], ["ring", "red", "up"] + [None] * 3]
    found = vision.matches(pd.DataFrame(table, columns=names))
    assert found.to_numpy().tolist() == [[True] * 4, [True, True, False, False], [False] * 4]


def test_the_animation_is_a_png_that_moves():
    _, clips = vision.films(vision.ASKED, 3, 0)
    data = vision.animation(list(clips), zoom=2)
    image = Image.open(io.BytesIO(data))
    assert data.startswith(b"\x89PNG") and image.format == "PNG" and image.n_frames == 5
    assert image.size == (2 * 3 * 18, 2 * 18)
    image.seek(1)
    inside = np.asarray(image.convert("RGB"))[2:34:2, 2:34:2] / 255
    assert np.abs(inside - clips[0, 1]).max() < 0.01
    numbered = Image.open(io.BytesIO(vision.animation(list(clips), zoom=2, numbered=True)))
    assert numbered.size == (2 * 3 * 18, 2 * 23) and np.asarray(numbered.convert("L"))[:10].min() < 128


def test_the_painter_learns_from_the_patches_alone():
    asked, clips = vision.films(vision.ASKED, 32, 1)
    codes = vision.codebook(clips, 16)
    model = vision.painter(16, width=24, layers=1)
    ids = vision.clip_rows(asked, clips, codes)
    first = vision.learn_clips(model, ids, 1)[0]["loss"]
    fresh = vision.painter(16, width=24, layers=1)
    with torch.no_grad():
        by_hand = cross_entropy(fresh(ids).logits[:, 5:-1].flatten(0, 1), ids[:, 6:].flatten())
    assert first == pytest.approx(by_hand.item(), abs=1e-4)
    assert vision.paint(model.eval(), asked[:3], codes).shape == (3, 5, 16, 16, 3)


STORED = [runs.RUNS / f"{name}.parquet" for name in ("pictures", "clips")]


@pytest.mark.skipif(not STORED[0].exists(), reason="python -m utils.runs pictures makes it")
def test_a_stored_arm_of_pictures_is_made_again():
    """Fewer steps and pictures: the same pictures are asked, and the model sees more than another picture shows it."""
    stored = pd.read_parquet(STORED[0])
    assert {*vision.ARMS} == set(stored.arm) and set(stored.seed) == set(runs.SEEDS)
    rows = pd.DataFrame(vision.arm("question only", 0, steps=60, test=150))
    then = stored[(stored.arm == "question only") & (stored.seed == 0)]
    assert (
        rows[["split", "picture", "kind"]].to_numpy().tolist() == then[["split", "picture", "kind"]].to_numpy().tolist()
    )
    assert rows.right.mean() == pytest.approx(then.right.mean(), abs=0.08)


@pytest.mark.skipif(not STORED[1].exists(), reason="python -m utils.runs clips makes it")
def test_stored_clips_are_painted_again():
    """The kept weights are half as precise, so single draws may differ; the shares do not."""
    stored = pd.read_parquet(STORED[1])
    model, codes = vision.stored_painter()
    asked = vision.ASKED * 2
    seen = vision.parse(vision.paint(model, asked, codes, seed=vision.TEST))
    then = stored[stored.seed == 0]
    now = np.mean([a == b for a, b in zip(asked, seen, strict=True)])
    assert now == pytest.approx(vision.matches(then)["all"].mean(), abs=0.08)


def test_picture_questions(rung, gallery):
    (model, tokenizer), (pictures, asked) = rung, gallery
    seeing = vision.Seeing(model, torch.randn(len(pictures) * 9, 64))
    widget = widgets.picture_questions(seeing, tokenizer, pictures, asked["pictures"])
    which, question, picture = widget.children
    seen, start = set(), time.process_time()
    for number in (which.max, 1):
        before = bytes(picture.value)
        assert before  # drawn before anything is chosen
        which.value = number
        assert question.value == question.options[0][1] and bytes(picture.value) != before
        for _, value in question.options:
            question.value = value
            assert bytes(picture.value).startswith(b"\x89PNG")
            seen.add(bytes(picture.value))
    assert len(seen) == 16
    assert (time.process_time() - start) / 16 < 0.3
