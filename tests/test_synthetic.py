"""Self-Instruct's loop: what is new is kept, what the grader doubts is not, and nothing that is asked was a seed."""

import itertools

import pytest

from utils import bottle, evaluation, flan, models, synthetic


@pytest.fixture(scope="module")
def small():
    return models.load("ladder/70k")


def test_seeds_share_nothing_with_what_is_asked():
    for fold in flan.FOLDS:
        given = synthetic.seeds(fold, 0)
        assert len(given) == synthetic.SEEDS and not {item["cluster"] for item in given} & set(fold)
        assert not bottle.leaks(given, flan.test_items(fold, 20))


def test_the_quick_test_of_likeness_is_rouge():
    prompts = [item["prompt"] for item in flan.mixture(flan.clusters(), 0, 48)]
    prompts += ["a b c d", "A, b. c d!", "d c b a", ""]
    for a, b in itertools.product(prompts, repeat=2):
        assert synthetic.alike(a, b) == (evaluation.rouge_l(a, b) > synthetic.ALIKE), (a, b)


def test_repeats_are_left_out():
    make = lambda text: dict(prompt=text, answer="x")  # noqa: E731
    given, made = (
        [make("where is the red ball now")],
        [make("where is the blue ball now"), make("who came first today")],
    )
    made += [make("who came first"), make("short one"), make("why " * 61), make("what did Ann buy there")]
    assert synthetic.different(made, given) == [made[1], made[5]]


def test_generated_examples_are_read_and_repeatable(small):
    model, tokenizer = small
    given = synthetic.seeds(flan.FOLDS[0], 0)
    made = synthetic.generate(model, tokenizer, given, 96, seed=1)
    assert made and made == synthetic.generate(model, tokenizer, given, 96, seed=1)
    for item in made:
        assert item["prompt"] and item["answer"] and "\n" not in item["answer"] and "Q:" not in item["prompt"]


def test_the_grader_keeps_what_it_would_say(small):
    model, tokenizer = small
    prompts = ["Where does Lena live?", "Is the sky blue or red?"]
    said = [text.split("\n")[0].strip() for text in flan.answers(model, tokenizer, [f"Q: {p}\nA:" for p in prompts])]
    items = [dict(prompt=p, answer=a) for p, a in zip(prompts, said, strict=True) if a]
    assert items and synthetic.best(model, tokenizer, items) == items
    assert not synthetic.best(model, tokenizer, [item | {"answer": "zebra zebra"} for item in items])
