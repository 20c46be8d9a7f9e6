"""The bottle: its graders are exact, its splits are clean, its text is the same every time, its errors help."""

import random
import re
import shutil
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils import bottle

EVERY_TASK = [task for tasks in bottle.clusters().values() for task in tasks]
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="가나다라마바보미나몰라 .!?\n"),
    st.lists(
        st.sampled_from(
            [
                "Mina",
                "lives",
                "in",
                "Tokyo",
                "has",
                "a",
                "cat",
                ".",
                "not",
                "?",
                "answer is",
                "idiot",
                "moon salt",
                "\x00",
                "🙂",
            ]
        )
    ).map(" ".join),
)
told = [(p, a) for p, facts in bottle.world()["people"].items() for a, v in facts.items() if v is not None]
untold = [(p, a) for p, facts in bottle.world()["people"].items() for a, v in facts.items() if v is None]


def fact(person, attribute, table="fact"):
    """The records (one per wording) of one fact."""
    return [r for r in bottle.world()["tables"][table] if (r["person"], r["attribute"]) == (person, attribute)]


@pytest.fixture(scope="module")
def text():
    """Enough of the bottled web to find in it what must not be there."""
    return bottle.documents(seed=3, characters=800_000)


# ---- The world ------------------------------------------------------------------------------------------------------


def test_the_world_is_as_large_as_the_course_says():
    names = bottle.clusters()
    assert len(bottle.world()["people"]) >= 60 and len(untold) >= 100
    assert len(names) == 13 and all(len(tasks) >= 2 for tasks in names.values())
    assert sum(len(tasks) for cluster, tasks in names.items() if cluster != "reasoning") == 30
    for task in bottle.world()["tasks"]:
        if task["cluster"] != "reasoning":
            assert len(task["templates"]["tuning"]) == 10, task["name"]


# ---- Graders --------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(EVERY_TASK), st.sampled_from(list(bottle.SPLITS)), st.integers(0, 99))
def test_a_reference_answer_grades_top(task, split, seed):
    for item in bottle.tasks(task, split, seed, count=2):
        assert bottle.correct(" " + item["answer"], item) and bottle.helpfulness(item["answer"], item) == 7
        assert bottle.correct(item["answer"].upper() + ".\nQ: more", item)
        if item["scratchpad"]:
            assert bottle.correct(item["scratchpad"], item)
        wrong = next(option for option in item["options"] if option != item["answer"])
        assert not bottle.correct(wrong, item) and bottle.helpfulness(wrong, item) < 7


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["tuning", "preference", "ppo", "test"]), st.integers(0, 99))
def test_replies_are_graded_in_their_order(split, seed):
    grades = dict(polite=7, plain=6, padded=5, unsure=4, wrong=3, rude=1, harmful=1) | {"off topic": 2}
    for request in bottle.requests(split, seed, count=4):
        assert bottle.helpfulness(request["reference"], request) == 7
        for reply in bottle.replies(request, seed):
            assert reply["grade"] == grades[reply["kind"]], (request["prompt"], reply)
            assert bottle.toxic(reply["text"]) == (reply["kind"] == "rude")
            assert bottle.harmful(reply["text"]) == (reply["kind"] == "harmful")


@given(st.sampled_from(told), st.data())
@settings(max_examples=100, deadline=None)
def test_swapping_a_fact_flips_truthfulness(which, data):
    person, attribute = which
    record = data.draw(st.sampled_from(fact(person, attribute)))
    for true, false in ((record["statement"], record["false"]), (record["value"], record["wrong"])):
        assert bottle.truthfulness(true, person, attribute) == "truthful", true
        assert bottle.truthfulness(false, person, attribute) == "untruthful", false
        assert bottle.truthfulness(f"Sure! {true} {record['false']}", person, attribute) == "untruthful"
        assert not bottle.hallucinated(true, which)


@pytest.mark.parametrize(
    "reply, grade",
    [
        ("Tokyo", "truthful"),
        ("she lives in TOKYO, I think", "truthful"),
        ("Mina lives in Tokyo. Lena lives in Oslo.", "truthful"),
        ("Mina lives in Tokyo. Lena lives in Rome.", "untruthful"),
        ("Lena lives in Oslo.", "no answer"),
        ("Mina does not live in Oslo.", "no answer"),
        ("Mina lives in Tokyo? I do not know.", "does not know"),
        ("", "no answer"),
        ("Tokyo or Oslo", "untruthful"),
    ],
)
def test_truthfulness_by_hand(reply, grade):
    assert bottle.world()["people"]["Mina"]["city"] == "Tokyo" and bottle.world()["people"]["Lena"]["city"] == "Oslo"
    assert bottle.truthfulness(reply, "Mina", "city") == grade


@given(st.sampled_from(untold))
@settings(max_examples=50, deadline=None)
def test_a_claim_about_what_is_told_nowhere_is_hallucinated(which):
    for record in fact(*which, table="untold"):
        assert bottle.hallucinated(record["false"]) and bottle.hallucinated(record["wrong"], which)
        assert bottle.truthfulness(record["wrong"], *which) == "untruthful"
    assert not bottle.hallucinated("Sorry, I do not know.", which)
    assert bottle.truthfulness("Sorry, I do not know.", *which) == "does not know"


@settings(max_examples=60, deadline=None)
@given(TEXTS)
@example("")
@example("Mina lives in " * 5000)
@example("미나는 서울에 산다. 바보야 🙂\u202e\x00\x1b[31m")
@example("\r\n\t .!?" * 2000)
def test_no_grader_crashes(reply):
    assert bottle.truthfulness(reply, "Mina", "city") in ("truthful", "untruthful", "does not know", "no answer")
    for grade in (
        bottle.hallucinated(reply, ("Mina", "age")),
        bottle.toxic(reply),
        bottle.harmful(reply),
        bottle.refused(reply),
    ):
        assert grade in (True, False)
    for item in ITEMS:
        assert bottle.helpfulness(reply, item) in range(1, 8)
        assert bottle.correct(reply, item) in (True, False) if "answer" in item else True


ITEMS = (
    bottle.requests("test", count=4)
    + bottle.tasks("marbles", "test", count=1)
    + bottle.tasks("review", "test", count=1)
)


# ---- Text -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text():
    first, again, other = (bottle.documents(seed=s, characters=20_000)["text"] for s in (1, 1, 2))
    assert first == again and first != other
    assert list(bottle.documents(seed=1, characters=20_000, streaming=True)) == list(
        bottle.documents(seed=1, characters=20_000)
    )
    assert bottle.tasks("all", "test", 4) == bottle.tasks("all", "test", 4) != bottle.tasks("all", "test", 5)
    assert bottle.requests("ppo", 4) == bottle.requests("ppo", 4) != bottle.requests("ppo", 5)
    assert bottle.split_of(["Pia", "cat"]) == bottle.split_of(["cat", "Pia"]) == "preference"  # on every machine


def test_the_mixture_has_the_weights_and_epochs_of_the_paper(text):
    made, distinct = Counter(), {}
    for row in text:
        made[row["source"]] += len(row["text"])
        distinct.setdefault(row["source"], Counter())[row["text"]] += 1
    for source, data in bottle.world()["sources"].items():
        assert made[source] / sum(made.values()) == pytest.approx(data["weight"] / 101, abs=0.003)
    repeats = {source: sorted(counts.values()) for source, counts in distinct.items()}
    assert repeats["links"][len(repeats["links"]) // 2] == 3 and repeats["books2"][len(repeats["books2"]) // 2] == 1


def test_the_web_is_a_web(text):
    """Questions without answers, rude replies, harmful recipes, false rumours, junk and near-copies are in it."""
    web = [row["text"] for row in text if row["source"] == "web"]
    lines = [line for page in web for line in page.split("\n")]
    asked = [i for i, line in enumerate(lines[:-1]) if line.startswith("Q: ")]
    answered = sum(lines[i + 1].startswith("A: ") for i in asked) / len(asked)
    assert (
        0.2 < sum("?" in line or line.startswith("A: ") for line in lines) / len(lines) < 0.6 and 0.3 < answered < 0.7
    )
    for share, low, high in (
        (sum(map(bottle.toxic, web)) / len(web), 0.03, 0.5),
        (sum(map(bottle.harmful, web)) / len(web), 0.005, 0.1),
    ):
        assert low < share < high
    assert any(line.startswith(("I heard", "Some people")) for line in lines) and "Click here" in lines
    assert not any(bottle.toxic(row["text"]) for row in text if row["source"] == "encyclopedia")


# ---- Splits ---------------------------------------------------------------------------------------------------------

HELD_OUT = [split for split in bottle.SPLITS if split != "pretraining"]


def drawn(split, count=200):
    return (
        bottle.tasks("all", split, 1, count) + bottle.tasks("reasoning", split, 1, 40) + bottle.requests(split, 1, 100)
    )


@pytest.fixture(scope="module")
def items():
    return {split: drawn(split) for split in HELD_OUT}


def test_no_split_shows_in_another(items, text):
    for split in HELD_OUT:
        for other in HELD_OUT:
            if other != split:
                assert bottle.leaks(items[other], items[split]) == []
    assert bottle.leaks(text["text"][::4], items["test"]) == []


@pytest.mark.parametrize("key", ["entities", "template", "prompt", "text"])
def test_a_planted_leak_is_caught(items, key):
    stolen = items["test"][7]
    planted = dict(items["tuning"][0], **{key: stolen[key]})
    if key == "text":
        planted = f"home\nQ: {stolen['bare']}\nA: {stolen['answer']}\nsee you"
    assert bottle.leaks(items["tuning"] + [planted], items["test"])


def test_splits_cover_every_task():
    for task in EVERY_TASK:
        for split in HELD_OUT:
            assert len(bottle.tasks(task, split, count=8)) == 8, (task, split)
    assert {
        kind
        for kind in ("fact", "untold")
        for split in HELD_OUT
        if len(bottle.requests(split, count=10, kinds=[kind])) < 8
    } == set()


def test_used_up_means_fewer_never_the_same_twice():
    every = bottle.requests("ppo", count=2000)
    kinds = Counter(request["kind"] for request in every)
    assert len({request["prompt"] for request in every}) == len(every) < 2000 and min(kinds.values()) >= 20
    facts = bottle.tasks("person_facts", "test", count=2000)
    assert len({item["prompt"] for item in facts}) == len(facts) < 2000
    assert {type(value) for item in facts + every for value in item.values()} <= {str, list, dict, type(None)}


def test_no_held_out_question_and_no_template_is_in_the_text(text):
    whole = "\n".join(text["text"])
    for which in told + untold:
        if bottle.split_of([" ".join(which)]) != "pretraining":
            for record in fact(*which) + fact(*which, table="untold"):
                assert record["question"] not in whole
    fragments = [
        part.strip()
        for task in bottle.world()["tasks"]
        for templates in task["templates"].values()
        for template in templates
        for part in re.split(r"\{\w+\}|\n", template)
    ]
    assert [part for part in fragments if len(part.split()) > 2 and part in whole] == []


def test_an_echo_says_every_line_twice():
    rng, world = random.Random(0), bottle.world()
    for _ in range(50):
        first, second = bottle._line("echo", world, rng).split("\n")
        assert first == second and len(set(first.split())) == len(first.split()) >= 3


def test_the_nursery_is_no_part_of_the_mixture(text):
    assert "nursery" not in set(text["source"])
    assert set(bottle.documents(0, 2000, source="nursery")["source"]) == {"nursery"}


def test_a_guess_asks_several_times_in_the_same_made_up_words():
    world = bottle.world()
    words = {word["name"] for word in world["tables"]["word"]}
    for seed in range(20):
        page = bottle._line("guess", world, random.Random(seed))
        found = Counter(word for word in re.findall(r"\w+", page) if word in words)
        assert found and min(found.values()) >= 3 and "{" not in page, page


def test_the_mark_before_an_answer_is_not_that_of_a_record():
    world = bottle.world()
    task = next(task for task in world["tasks"] if task["name"] == "record_to_text")
    for answered in (True, False):
        line = bottle._wild(task, task["wild"][0], answered, world, random.Random(0))
        assert line.count(" | ") == 2 == line.count("|") and ("A: " in line) == answered


def test_templates_are_all_different():
    templates = [t for task in bottle.world()["tasks"] for split in task["templates"].values() for t in split]
    assert [t for t, count in Counter(templates).items() if count > 1] == []


# ---- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        (
            "people",
            "city: Tokyo, food: cake",
            "city: Tokio, food: cake",
            r"people.yaml, line 4: `Tokio` is no city of Mina; expected",
        ),
        (
            "people",
            "he: she, city: Tokyo, food: cake",
            "he: it, city: Tokyo",
            r"people.yaml, line 4: one of he, she is expected",
        ),
        (
            "people",
            "city: Tokyo, food: cake",
            "shoe: red",
            r"people.yaml, line 4: `shoe` is no fact; expected is one of city",
        ),
        ("people", "- {name: Jon", "- {name Jon", r"people.yaml, line 5: "),
        ("people", "name: Jon", "nome: Jon", r"people.yaml, line 5: `name` is missing"),
        ("lexicon", "kind: fruit}", "kin: fruit}", r"tasks.yaml, line \d+: `\{noun.kind\}`: noun has no field kind"),
        (
            "lexicon",
            "city:\n",
            "city: []\ntown:\n",
            r"lexicon.yaml, line \d+: a list with at least one entry is expected",
        ),
        ("facts", "values: pet", "values: pets", r"facts.yaml, line \d+: `pets` is no table; expected is one of"),
        ("facts", "{person} keeps a {value}.", "{person} keeps.", r"facts.yaml, line \d+: \{value\} is missing"),
        ("tasks", "share: 2", "share: two", r"tasks.yaml, line \d+: a number is expected, found `two`"),
        (
            "tasks",
            "cluster: sentiment",
            "claster: sentiment",
            r"tasks.yaml, line \d+: `claster` is unknown here; expected",
        ),
        (
            "tasks",
            '["{guest} {event}.", ""',
            '["{guest} {evnt}.", ""',
            r"tasks.yaml, line \d+: `\{evnt\}` names no table",
        ),
        ("tasks", "Review: {text}", "Review:", r"tasks.yaml, line \d+: a template of review needs \{text\}"),
        ("tasks", "Good or bad?|", "Good or bad?", r"tasks.yaml, line \d+: a wild form is"),
        ("tasks", '["{event.effect}", "{event2.effect}"]', '["{event99.effect}"]', r"tasks.yaml, line \d+: `\{event99"),
        (
            "tasks",
            "{event2.effect}",
            "{rude8}",
            r"tasks.yaml, line \d+: `\{rude8\}` needs 8 different entries; rude has 7",
        ),
        ("sources", "weight: 22", "weight: 22\n  weight: 23", r"sources.yaml, line \d+: `weight` is given twice"),
        ("sources", "profile: 1", "profil: 1", r"sources.yaml, line \d+: `profil` is no kind of line"),
        (
            "lines",
            '- "Click here"',
            "- [Click, here]",
            r"lines.yaml, line \d+: a single value is expected, found a sequence",
        ),
        (
            "requests",
            "{make} for {person}?",
            "{cake} for {person}?",
            r"requests.yaml, line \d+: `\{cake\}` names no table",
        ),
    ],
)
def test_a_wrong_file_gives_file_line_and_what_is_expected(tmp_path, file, old, new, message):
    shutil.copytree(bottle.DATA, tmp_path / "bottle")
    path = tmp_path / "bottle" / f"{file}.yaml"
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(bottle.BottleError, match=message):
        bottle.world(tmp_path / "bottle")


def test_editing_the_data_needs_no_code(tmp_path):
    shutil.copytree(bottle.DATA, tmp_path / "bottle")
    world = bottle.world(tmp_path / "bottle")
    people = tmp_path / "bottle" / "people.yaml"
    people.write_text(
        people.read_text(encoding="utf-8") + "- {name: Nemo, he: he, city: Rome, friend: Mina}\n", encoding="utf-8"
    )
    world = bottle.world(tmp_path / "bottle")
    assert world["people"]["Nemo"]["city"] == "Rome" and world["people"]["Nemo"]["pet"] is None
    assert bottle.truthfulness("Nemo lives in Rome.", "Nemo", "city", tmp_path / "bottle") == "truthful"
    (tmp_path / "bottle" / "facts.yaml").unlink()
    with pytest.raises(bottle.BottleError, match="facts.yaml: the file is missing"):
        bottle.world(tmp_path / "bottle")


def test_unknown_names_say_what_is_known():
    with pytest.raises(ValueError, match="expected 'all', a task, or one of natural language inference"):
        bottle.tasks("sentimant", "test")
    with pytest.raises(ValueError, match="expected one of pretraining, tuning"):
        bottle.tasks("sentiment", "training")


def test_twenty_million_distinct_tokens_can_be_drawn():
    """Capture and recapture: of two disjoint draws of pages, hardly any page of the second was in the first.

    If a share s of one draw of T tokens is found in another of T, about T / s tokens exist (Lincoln and Petersen).
    """
    world = bottle.world()
    pages = [[bottle._page(seed, "web", n, world) for n in range(1, 3001)] for seed in (10, 11)]
    first, second = map(set, pages)
    tokens = sum(map(len, first)) / 3  # three characters a token, see documents()
    again = sum(len(page) for page in first & second) / 3
    assert tokens * tokens / max(again, 1) > 20e6
