"""Widgets: they change when used, quickly, and escape what a model wrote."""

import html
import time

import ipywidgets
import matplotlib
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from tests import conftest
from utils import bottle, flan, models, plots, preference, pretrain, retrieval, rlhf, widgets

matplotlib.use("agg")
plots.style()


def parts(widget, kind) -> list:
    """All widgets of a kind inside a widget."""
    inside = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget] * isinstance(widget, kind) + inside


def test_distribution_explorer(smollm2):
    explorer = widgets.distribution_explorer(*smollm2, "The capital of France is")
    (picture,), (button,), (drawn,) = (
        parts(explorer, kind) for kind in (ipywidgets.Image, ipywidgets.Button, ipywidgets.HTML)
    )
    for slider in parts(explorer, (ipywidgets.FloatSlider, ipywidgets.IntSlider)):
        for value in (slider.min, slider.max):
            before, slider.value = picture.value, value
            assert bytes(picture.value).startswith(b"\x89PNG")
        assert picture.value != before
    assert drawn.value == ""
    button.click()
    assert "×" in drawn.value
    (text,) = parts(explorer, ipywidgets.Text)
    for words in ("", "<script>alert(1)</script> & \"quotes\" '😀'", "서울"):
        before, text.value = picture.value, words
        assert picture.value != before


def test_drawn_tokens_are_escaped(smollm2, monkeypatch):
    model, tokenizer = smollm2
    explorer = widgets.distribution_explorer(model, tokenizer, "x")
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, *_, **__: "<b>&")
    parts(explorer, ipywidgets.Button)[0].click()
    assert "&lt;b&gt;&amp;" in parts(explorer, ipywidgets.HTML)[0].value


def test_beam_tree_keeps_what_beam_search_keeps(smollm2):
    model, tokenizer = smollm2
    text, beams, depth = "The nicest thing about Seoul is its", 3, 3
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(
        ids, max_new_tokens=depth, num_beams=beams, num_return_sequences=beams, length_penalty=0.0, do_sample=False
    )
    levels = widgets.BeamTree(model, tokenizer, text).levels(beams, depth)
    best = max((node for node in levels[-1] if node[3]), key=lambda node: node[2])
    words, index = [], levels[-1].index(best)
    for level in reversed(levels):
        words.insert(0, level[index][1])
        index = level[index][0]
    assert "".join(words) == tokenizer.decode(out[0, ids.shape[1] :])
    assert [sum(node[3] for node in level) for level in levels] == [beams] * depth


def test_beam_tree_redraws_without_reading_again(smollm2, monkeypatch):
    tree = widgets.beam_tree(*smollm2, "Once upon a time")
    monkeypatch.setattr(type(smollm2[0]), "forward", lambda *_, **__: pytest.fail("read again"))
    (picture,) = parts(tree, ipywidgets.Image)
    for slider in parts(tree, ipywidgets.IntSlider):
        for value in (slider.min, slider.max):
            before, slider.value = picture.value, value
        assert picture.value != before


def test_scaling_calculator():
    calculator = widgets.scaling_calculator()
    (picture,), (answer,) = parts(calculator, ipywidgets.Image), parts(calculator, ipywidgets.HTML)
    for words in ("3.14 × 10²³ FLOP", "356 GPU-years", "4.68 million dollars", "2,794 GB to train, 349 GB"):
        assert words in answer.value
    sliders = parts(calculator, ipywidgets.FloatLogSlider) + parts(
        calculator, (ipywidgets.FloatSlider, ipywidgets.IntSlider)
    )
    assert len(sliders) == 5
    for slider in sliders:
        log = isinstance(slider, ipywidgets.FloatLogSlider)
        for value in (slider.min, slider.max):
            before, drawn = answer.value, picture.value
            slider.value = 10.0**value if log else value
            assert answer.value != before
            assert (picture.value != drawn) == log
            assert "nan" not in answer.value and "inf" not in answer.value
    start = time.process_time()
    sliders[0].value = 1e9
    assert time.process_time() - start < 0.3


def test_labels_show_what_cannot_be_seen():
    assert plots.token(" a\n") == "␣a⏎"
    assert plots.token("x" * 40) == "x" * 13 + "…"
    assert plots.token("\x00") == "�"


def test_a_label_with_markup_is_drawn_as_it_is():
    plots.distribution(["$x_", "<b>", "\\frac{"], [0.5, 0.3, 0.2], [0.6, 0.4, 0.0], "$50 & more").canvas.draw()


def test_korean_is_drawn_with_korean_glyphs(recwarn):
    plots.distribution(["서울", "안녕 a"], [0.6, 0.4], [1.0, 0.0], "한국어").canvas.draw()
    assert not [str(warning.message) for warning in recwarn]


LOG = [dict(step=s, reward=s / 9, gold=1.0, kl=0.1 * s, entropy=2.0, length=9.0, sample="<b>&1") for s in range(1, 7)]


def test_dashboard_is_plain_text_without_a_notebook(capsys):
    watch = widgets.dashboard(every=3)
    for end in range(1, 7):
        watch(LOG[:end])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == ["3", "6"]
    assert "reward 0.67  gold 1.00  kl 0.60  entropy 2.00  length 9.00" in printed[1]


def test_dashboard_renews_its_picture_and_escapes(monkeypatch):
    """In a notebook two outputs are shown once, then updated; the text is escaped."""
    shown, updates = [], []

    class Handle:
        def update(self, new):
            updates.append(new)

    monkeypatch.setattr(widgets.IPython, "get_ipython", lambda: type("Shell", (), {"kernel": None})())
    monkeypatch.setattr(widgets.IPython.display, "display", lambda new, display_id: shown.append(new) or Handle())
    watch = widgets.dashboard(every=1)
    for end in range(1, 4):
        watch(LOG[:end])
    assert len(shown) == 2 and len(updates) == 4
    assert shown[0].data.startswith(b"\x89PNG") and updates[0].data != updates[2].data
    assert "&lt;b&gt;&amp;1" in updates[-1].data and "<b>" not in updates[-1].data


def test_the_slider_over_finished_runs_draws_and_escapes():
    log = [line | {"step": float(line["step"])} for line in LOG]  # as a table with gaps holds them
    logs = {beta: [line | {"kl": line["kl"] / (beta + 0.1)} for line in log] for beta in (0.5, 0.0)}
    shown = widgets.finished_runs(logs)
    (slider,), (picture,), (text,) = (
        parts(shown, kind) for kind in (ipywidgets.SelectionSlider, ipywidgets.Image, ipywidgets.HTML)
    )
    assert list(slider.options) == [0.0, 0.5] and "step 1:" in text.value
    assert "&lt;b&gt;&amp;1" in text.value and "<b>" not in text.value
    before, start = picture.value, time.perf_counter()
    slider.value = 0.5
    assert picture.value != before
    assert time.perf_counter() - start < 3


def test_template_browser():
    tokenizer, model = pretrain.train_tokenizer(100_000), LlamaForCausalLM(pretrain.RUNGS["20k"]["config"]).eval()
    browser = widgets.template_browser(model, tokenizer)
    (shown,), (task,), (split,), (button,) = (
        parts(browser, kind)
        for kind in (ipywidgets.HTML, ipywidgets.Dropdown, ipywidgets.ToggleButtons, ipywidgets.Button)
    )
    assert shown.value.count("<tr>") == 1 + 10 + 2 and shown.value.count("<b>") == 12
    assert [value for _, value in task.options] == [t for c in flan.clusters() for t in bottle.clusters()[c]]
    for change in (lambda: setattr(task, "value", "to_korean"), button.click, lambda: setattr(split, "value", "test")):
        before = shown.value
        change()
        assert shown.value != before
    assert shown.value.count("<tr>") < 1 + 10 + 2


def test_the_template_browser_escapes():
    tokenizer, model = pretrain.train_tokenizer(100_000), LlamaForCausalLM(pretrain.RUNGS["20k"]["config"]).eval()
    item = flan.test_items(["mood"], 1)[0]
    item |= {"text": "<script>alert(1)</script>", "options": ["<b>happy", "sad"], "answer": "<b>happy"}
    table = widgets.phrasing_table(model, tokenizer, item)
    assert "<script>" not in table and "&lt;script&gt;" in table and "&lt;b&gt;happy" in table


@torch.inference_mode()
def test_attention_weights_are_those_of_the_model():
    """Rows sum to 1, nothing looks ahead, and the way attention is computed is put back."""
    model, tokenizer = conftest.tiny(0), conftest.words()
    usual = model.config._attn_implementation
    tokens, weights = widgets.attention_weights(model, tokenizer, "w4 w9 w17 w9")
    assert tokens == ["<b>", "w4", "w9", "w17", "w9"]
    assert weights.shape == (2, 4, 5, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 5)) and not weights.triu(1).any()
    assert model.config._attn_implementation == usual
    values = []
    layer = model.model.layers[0].self_attn
    layer.o_proj.register_forward_pre_hook(lambda module, inputs: values.append(inputs[0]))
    layer.v_proj.register_forward_hook(lambda module, inputs, out: values.append(out))
    model(tokenizer("w4 w9 w17 w9", return_tensors="pt").input_ids)
    v = values[0].view(5, 2, 8).transpose(0, 1).repeat_interleave(2, 0)  # two heads share keys and values
    assert torch.allclose((weights[0] @ v).transpose(0, 1).reshape(5, 32), values[1][0], atol=1e-5)


def test_attention_viewer():
    viewer = widgets.attention_viewer(conftest.tiny(0), conftest.words(), "w4 w9 w17")
    (picture,), (text,), (first,) = (parts(viewer, k) for k in (ipywidgets.Image, ipywidgets.Text, ipywidgets.Checkbox))
    for slider in parts(viewer, ipywidgets.IntSlider):
        assert slider.max == {"layer": 2, "head": 4}[slider.description]
        before, slider.value = picture.value, slider.max
        assert picture.value != before
    before, first.value = picture.value, False
    assert picture.value != before
    for sentence in ("w5 w6", "", "<script> $x_ & w3"):
        before, text.value = picture.value, sentence
        assert bytes(picture.value).startswith(b"\x89PNG") and picture.value != before
    start = time.process_time()
    text.value = " ".join(["w7"] * 99)  # more than is shown
    assert time.process_time() - start < 1


def test_next_token_game_counts_both(monkeypatch):
    model, tokenizer = conftest.tiny(0), conftest.words()
    text = " ".join(f"w{3 + 7 * i % 40}" for i in range(30))
    monkeypatch.setattr(widgets, "guessing_places", lambda *_: [3, 5, 9])
    ids = tokenizer(text).input_ids
    best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    game = widgets.next_token_game(model, tokenizer, text)
    (guess,), (skip,), (story, said) = (parts(game, k) for k in (ipywidgets.Text, ipywidgets.Button, ipywidgets.HTML))
    its = [best[place - 1] == ids[place] for place in (3, 5, 9)]
    guess.value = tokenizer.decode(ids[3]).upper()  # right, whatever the case
    assert f"you 1, the model {sum(its[:1])}" in said.value and guess.value == ""
    guess.value = "<b>wrong"
    assert f"you 1, the model {sum(its[:2])}" in said.value and "&lt;b&gt;wrong" in said.value
    skip.click()
    assert f"Score after 3: <b>you 1, the model {sum(its)}" in said.value and "The end." in story.value
    before = said.value
    guess.value = "once more"
    assert said.value == before


def test_places_to_guess_are_whole_words(smollm2):
    tokenizer = smollm2[1]
    ids = tokenizer(
        "The capital of France, on the river Seine, is called Paris by everyone who has been there."
    ).input_ids
    places = widgets.guessing_places(tokenizer, ids, begin=1, apart=2)
    found = [tokenizer.decode(ids[place]) for place in places]
    assert len(places) > 4
    assert all(word.startswith(" ") and word[1:].isalpha() for word in found)
    assert all(b - a >= 2 for a, b in zip(places, places[1:], strict=False))


@pytest.fixture(scope="module")
def rewarded():
    """(policy, tokenizer, requests, replies) on the smallest rung."""
    policy, tokenizer = models.load("ladder/20k")
    asked = bottle.requests("preference", 0, 8)
    return policy, tokenizer, asked, rlhf.written(asked, 2, 0)


def test_labelling_trains_on_the_labels_given(rewarded, monkeypatch):
    policy, tokenizer, asked, said = rewarded
    labelled = []
    train = rlhf.train_reward
    monkeypatch.setattr(
        rlhf, "train_reward", lambda p, t, texts, **o: labelled.extend(texts) or train(p, t, texts, **o)
    )
    widget = widgets.preference_labelling(policy, tokenizer, asked, said)
    shown, told = parts(widget, ipywidgets.HTML)
    a, b, skip, learn = parts(widget, ipywidgets.Button)
    assert learn.disabled and said[0][0] in html.unescape(shown.value)
    for button in (a, b, skip):
        before, start = shown.value, time.process_time()
        button.click()
        assert shown.value != before and time.process_time() - start < 0.5
    assert told.value.count("2 labels") == 1
    learn.click()
    texts = [[rlhf.text(request, reply) for reply in row] for request, row in zip(asked, said, strict=True)]
    assert labelled == [texts[0], texts[1][::-1]]
    assert "A is better with probability" in told.value and "fell from" in told.value
    a.click()
    assert "of 1 pairs since its training" in told.value


def test_a_pair_is_escaped():
    table = widgets.pair_table({"prompt": "<b>ask</b>"}, "<script>alert(1)</script>", "&")
    assert "<script>" not in table and "<b>ask" not in table and "&lt;script&gt;" in table


def test_reward_inspector(rewarded):
    policy, tokenizer, asked, _ = rewarded
    inspector = widgets.reward_inspector({"a model": preference.reward_model(policy)}, tokenizer, asked)
    (picture,), (text,), (requests,) = (
        parts(inspector, kind) for kind in (ipywidgets.Image, ipywidgets.Text, ipywidgets.Dropdown)
    )
    (ready,) = parts(inspector, ipywidgets.ToggleButtons)
    assert text.value == bottle.replies(asked[0])[0]["text"]
    for act in (
        lambda: setattr(text, "value", "<b>x</b> $y_ 서울"),
        lambda: setattr(requests, "value", 3),
        lambda: setattr(ready, "value", ready.options[1][1]),
        lambda: setattr(text, "value", "long " * 200),
        lambda: setattr(text, "value", ""),
    ):
        before, start = picture.value, time.process_time()
        act()
        assert picture.value != before and bytes(picture.value).startswith(b"\x89PNG")
        assert time.process_time() - start < 1


def test_arena_is_blind_and_rates():
    bad = "<script>alert(1)</script>"
    questions = [{"prompt": f"{bad} {i}", "answers": {"one": f"{bad} a", "two": "b", "three": "c"}} for i in range(3)]
    arena = widgets.arena(questions)
    shown, told = parts(arena, ipywidgets.HTML)
    (picture,) = parts(arena, ipywidgets.Image)
    a, b, tie = parts(arena, ipywidgets.Button)
    assert "<script>" not in shown.value and html.escape(bad) in shown.value
    assert not any(name in shown.value for name in ("one", "two", "three")) and not told.value
    for button in (a, a, b, tie):
        before, start = picture.value, time.process_time()
        button.click()
        assert picture.value != before and time.process_time() - start < 0.6
        assert "A was" in told.value
    votes = [("one", "two", 1.0)] * 5 + [("two", "three", 1.0)] * 5
    figure = widgets.show_ratings(votes, ["one", "two", "three"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "two", "three"]
    assert figure.axes[0].get_title() == "10 votes"


HOSTILE = '<script>alert(1)</script> & "quotes" 서울'


def test_rag_inspector(smollm2):
    passages = retrieval.collection()[:40]
    inspector = widgets.rag_inspector(*smollm2, passages, passages[7])
    table, said, prompt = parts(inspector, ipywidgets.HTML)
    asked, added = parts(inspector, ipywidgets.Text)
    (by,), (k,) = (parts(inspector, kind) for kind in (ipywidgets.ToggleButtons, ipywidgets.IntSlider))
    assert table.value.index(passages[7]) < min(
        table.value.index(p) for p in passages if p in table.value and p != passages[7]
    )
    assert passages[7] in prompt.value and not said.value
    for act in (
        lambda: setattr(by, "value", "BM25"),
        lambda: setattr(k, "value", 5),
        lambda: setattr(added, "value", f"{passages[7]} {HOSTILE}"),
        lambda: setattr(asked, "value", HOSTILE),
        lambda: setattr(k, "value", 0),
    ):
        before, start = table.value, time.process_time()
        act()
        assert table.value != before and time.process_time() - start < 0.5
        assert "<script" not in table.value + prompt.value
    parts(inspector, ipywidgets.Button)[0].click()
    assert said.value and "<script" not in said.value


def test_chat_asks_every_model_and_escapes(monkeypatch):
    model, tokenizer = models.load("ladder/20k")
    talkers = {"one": (model, tokenizer, str), "<b>two": (model, tokenizer, "Q: {}\nA:".format)}
    widget = widgets.chat(talkers, "Hello!", 8)
    (shown,), (asked,) = parts(widget, ipywidgets.HTML), parts(widget, ipywidgets.Text)
    seen = []
    shown.observe(lambda change: seen.append(change["new"]), "value")
    parts(widget, ipywidgets.Button)[0].click()
    assert len(seen) >= 8  # it streams
    wanted = list(widgets.written(model, tokenizer, "Hello!", 8))[-1]
    assert wanted in html.unescape(shown.value) and "<b>two" not in shown.value
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, *_, **__: HOSTILE)
    asked.value = HOSTILE
    parts(widget, ipywidgets.FloatSlider)[0].value = 1.0
    parts(widget, ipywidgets.Button)[0].click()
    assert "<script" not in shown.value and shown.value.count("&lt;script") == 3


def test_written_is_greedy_and_keeps_to_the_context():
    model, tokenizer = models.load("ladder/20k")
    ids = tokenizer("Lena likes", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=10, do_sample=False)
    assert list(widgets.written(model, tokenizer, "Lena likes", 10))[-1] == tokenizer.decode(
        out[0, ids.shape[1] :], skip_special_tokens=True
    )
    assert list(widgets.written(model, tokenizer, "word " * 500, 5))


QUIZ = yaml.safe_load((models.LADDER.parent / "quiz.yaml").read_text(encoding="utf-8"))


def test_the_quiz_is_whole_in_both_languages():
    known = widgets.claims.load()
    for item in QUIZ:
        assert item["claim"] in known and 0 <= item["answer"] < len(item["options"])
        for text in [item["question"], item["why"], *item["options"]]:
            assert set(text) == {"en", "ko"} and all(text.values())
    table = widgets.quiz_table(QUIZ, {}, "ko")
    assert table.count("<details>") == len(QUIZ)


def test_quiz_explains_and_counts():
    hostile = [QUIZ[0] | {"question": {"en": HOSTILE, "ko": HOSTILE}, "why": {"en": HOSTILE, "ko": HOSTILE}}, QUIZ[1]]
    widget = widgets.quiz(hostile, {QUIZ[0]["claim"]: "holds"})
    asked, told, score = parts(widget, ipywidgets.HTML)
    *options, onward = parts(widget, ipywidgets.Button)
    assert not told.value
    options[QUIZ[0]["answer"]].click()
    options[0].click()  # the first answer counts
    assert "holds" in told.value and "1 / 1" in score.value and "<script" not in asked.value + told.value
    onward.click()
    assert not told.value and QUIZ[1]["question"]["en"] in html.unescape(asked.value)
    options[(QUIZ[1]["answer"] + 1) % 3].click()
    assert "1 / 2" in score.value
    parts(widget, ipywidgets.ToggleButtons)[0].value = "ko"
    assert QUIZ[1]["why"]["ko"] in html.unescape(told.value)
